"""Attention heads of a toy pipeline switched off, by torch alone: the baseline of interventions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from diffusion_lens.toys.generating import generate

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Head = tuple[str, int]
"""Path of the attention module inside the denoiser, index of the head."""


def text_heads(pipe: DiffusionPipeline) -> list[Head]:
    """Every head through which the image reads the text.

    Args:
        pipe: A toy pipeline.

    Returns:
        A UNet's cross-attention heads, or all heads of an MM-DiT, in the order of the modules.
    """
    cross = "unet" in pipe.components
    denoiser: Any = pipe.components["unet" if cross else "transformer"]
    return [
        (path, head)
        for path, module in denoiser.named_modules()
        if path.endswith(".attn2" if cross else ".attn")
        for head in range(module.heads)
    ]


def _silenced(value: Tensor, heads: Sequence[int], count: int) -> Tensor:
    parts = value.unflatten(-1, (count, -1)).clone()
    parts[..., list(heads), :] = 0
    return parts.flatten(-2)


@contextlib.contextmanager
def without_heads(pipe: DiffusionPipeline, heads: Sequence[Head]) -> Iterator[None]:
    """While entered, some heads write nothing to the image, in both branches of guidance.

    In an MM-DiT's double blocks the text's own rows are left alone; single blocks treat both alike.

    Args:
        pipe: A toy pipeline; as it was on exit, after an error too.
        heads: Which, as `text_heads` names them.

    Yields:
        Nothing.
    """
    denoiser: Any = pipe.components.get("unet") or pipe.components["transformer"]
    by_module: dict[str, list[int]] = {}
    for path, head in heads:
        by_module.setdefault(path, []).append(head)
    with contextlib.ExitStack() as stack:
        for path, chosen in by_module.items():
            module = denoiser.get_submodule(path)
            count = module.heads
            if getattr(module, "to_out", None) is not None:
                handle = module.to_out[0].register_forward_pre_hook(
                    lambda _, given, c=chosen, n=count: (_silenced(given[0], c, n), *given[1:])
                )
            else:  # a single block projects attention and MLP together
                handle = module.register_forward_hook(
                    lambda _, __, out, c=chosen, n=count: _silenced(out, c, n)
                )
            stack.callback(handle.remove)
        yield


def heads_off(
    pipe: DiffusionPipeline, **settings: Any
) -> Callable[[Sequence[str], Sequence[Head]], UInt8[np.ndarray, "batch height width rgb"]]:
    """A generator that takes heads to switch off, for `weakening_curve` and `score_intervention`.

    Args:
        pipe: A toy pipeline.
        **settings: Of `generate`, such as guidance and steps.

    Returns:
        A function of captions and heads.
    """

    def draw(captions: Sequence[str], heads: Sequence[Head]) -> np.ndarray:
        with without_heads(pipe, heads):
            return generate(pipe, captions, **settings)

    return draw


def random_order(heads: Sequence[Head], *, seed: int = 0) -> list[Head]:
    """Heads in a random order: what a relevance that knows nothing gives.

    Args:
        heads: Which.
        seed: Of the order.

    Returns:
        The same heads.
    """
    order = torch.randperm(len(heads), generator=torch.Generator().manual_seed(seed))
    return [heads[place] for place in order.tolist()]
