"""Attention as plain matrix products, whose backward pass is faster on a CPU than the fused one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode


def plain_attention(
    query: Float[Tensor, "*batch query d_head"],
    key: Float[Tensor, "*batch key d_head"],
    value: Float[Tensor, "*batch key d_head"],
) -> Float[Tensor, "*batch query d_head"]:
    """Softmax attention without a mask, step by step.

    Args:
        query: Queries.
        key: Keys.
        value: Values.

    Returns:
        The mixed values, in the values' dtype.
    """
    scores = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(-1, -2))
    return torch.matmul(scores.softmax(-1).to(value.dtype), value)


class PlainAttention(TorchFunctionMode):
    """While entered, unmasked `scaled_dot_product_attention` is computed by `plain_attention`.

    Faster to train on a CPU, at the price of memory for every pattern; of no use on a GPU.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute one torch function; called by torch."""
        names = ("query", "key", "value", "attn_mask")
        given: dict[str, Any] = dict(zip(names, args, strict=False)) | dict(kwargs or {})
        if func is F.scaled_dot_product_attention and given.get("attn_mask") is None:
            return plain_attention(given["query"], given["key"], given["value"])
        return func(*args, **(kwargs or {}))
