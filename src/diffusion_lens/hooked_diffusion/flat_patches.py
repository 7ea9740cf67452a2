"""Latents as tokens, each a patch with its channels last: how Ideogram 4 holds them."""

from __future__ import annotations

from typing import Any

from einops import rearrange
from torch import Tensor

PIPELINES = ("Ideogram4Pipeline",)
TOKENS = "batch (rows columns) (down right channel)"
MAP = "batch channel (rows down) (columns right)"


def holds_flat_patches(pipe: Any) -> bool:
    """Whether a pipeline's loop does."""
    return type(pipe).__name__ in PIPELINES


def as_tokens(pipe: Any, latents: Tensor) -> Tensor:
    """Latents with axes batch, channel, height, width as the loop holds them."""
    return rearrange(latents, f"{MAP} -> {TOKENS}", down=pipe.patch_size, right=pipe.patch_size)


def as_map(pipe: Any, tokens: Tensor, *, rows: int, columns: int) -> Tensor:
    """What the loop holds with axes batch, channel, height, width."""
    side = pipe.patch_size
    sizes = {"rows": rows, "columns": columns, "down": side, "right": side}
    return rearrange(tokens, f"{TOKENS} -> {MAP}", **sizes)
