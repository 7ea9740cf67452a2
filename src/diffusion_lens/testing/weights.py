"""Editing weights for the length of one forward: the other way of doing what a hook does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


def is_editable(module: Any) -> bool:
    """Whether a module is a linear layer whose weights can be changed for a moment."""
    return (
        type(module) is nn.Linear
        and "forward" not in module.__dict__
        and module.weight.device.type != "meta"
    )


@contextlib.contextmanager
def scaled_columns(module: Any, factors: Float[Tensor, " column"]) -> Iterator[None]:
    """Scale the first input columns of a linear layer while the context is open."""
    with _restored(module):
        columns = module.weight[:, : len(factors)]
        columns.mul_(factors.to(columns))
        yield


@contextlib.contextmanager
def scaled_rows(module: Any, factors: Float[Tensor, " row"]) -> Iterator[None]:
    """Scale the output rows of a linear layer, bias included, while the context is open."""
    with _restored(module):
        module.weight.mul_(factors.to(module.weight)[:, None])
        if module.bias is not None:
            module.bias.mul_(factors.to(module.bias))
        yield


@contextlib.contextmanager
def scaled_tokens(
    module: nn.Module, tokens: Tensor, factors: Float[Tensor, " channel"]
) -> Iterator[None]:
    """Scale the output of a module at some tokens while the context is open.

    This is a torch hook of its own, which knows nothing of streams.

    Args:
        module: The module; its output has axes batch, token, channel.
        tokens: True where a token's output is scaled.
        factors: For each channel.
    """

    def scale(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        scaled = output.clone()
        scaled[:, tokens] = scaled[:, tokens] * factors.to(output)
        return scaled

    handle = module.register_forward_hook(scale)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _restored(module: nn.Module) -> Iterator[None]:
    with torch.no_grad():
        before = [parameter.clone() for parameter in module.parameters()]
        try:
            yield
        finally:
            for parameter, value in zip(module.parameters(), before, strict=True):
                parameter.copy_(value)
