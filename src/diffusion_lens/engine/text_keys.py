"""Keys of text rows in a cross-attention, made as the model makes them, without a run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lens.architectures.spec import DenoiserSpec
from diffusion_lens.errors import UnsupportedModelError


def text_context(denoiser: nn.Module, spec: DenoiserSpec, embeddings: Tensor) -> Tensor:
    """Text embeddings as cross-attention reads them, axes row, d_text.

    Args:
        denoiser: The denoiser.
        spec: Its description.
        embeddings: As the text encoder gives them, axes row, d_text.

    Raises:
        UnsupportedModelError: If what the text passes on the way is not described.
    """
    if spec.to_context is None:
        raise UnsupportedModelError(
            f"what text passes before the cross-attention of {spec.denoiser} is not described, so "
            "that keys of words that are not in the prompt cannot be made; put the words into the "
            "prompt and read `blocks.*.cross_attn.txt.hook_k`"
        )
    rows = embeddings[None]
    for path in spec.to_context:
        parent, _, name = path.rpartition(".")
        module: Any = getattr(denoiser.get_submodule(parent), name)
        rows = rows if module is None else module.forward(rows)
    return rows[0]


def text_keys(attention: Any, context: Tensor) -> Tensor:
    """Keys of text in a cross-attention, as they enter its product.

    Args:
        attention: The module.
        context: Text as cross-attention reads it, axes row, d_text.

    Returns:
        Axes head, row, d_head.

    Raises:
        UnsupportedModelError: If the norm of its keys is neither over a head nor over all heads.
    """
    with torch.no_grad():
        keys = attention.to_k(context[None])
        norm = getattr(attention, "norm_k", None)
        width = None if norm is None else _width(norm)
        if norm is not None and width == keys.shape[-1]:
            keys, norm = norm(keys), None
        keys = keys.unflatten(-1, (attention.heads, -1))
        if norm is not None and width != keys.shape[-1]:
            raise UnsupportedModelError(
                f"{type(attention).__name__} norms keys over {width} channels, which are neither "
                f"the {keys.shape[-1]} of a head nor those of all heads, so that keys of words "
                "cannot be made; put the words into the prompt and read "
                "`blocks.*.cross_attn.txt.hook_k`"
            )
        keys = keys if norm is None else norm(keys)
    return keys[0].transpose(0, 1)


def _width(norm: Any) -> int | None:
    weight = getattr(norm, "weight", None)
    return None if weight is None else weight.shape[-1]
