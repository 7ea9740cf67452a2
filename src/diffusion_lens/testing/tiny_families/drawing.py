"""What the tiny families share: sizes, and the types of their makers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

TEXT_TOKENS = 7
"""Length of the text: another number than any count of image tokens, heads or widths."""

HEIGHT, WIDTH = 4, 6
"""The image in tokens."""

Draw = Callable[..., Tensor]
"""Random numbers of a shape."""

Made = tuple[nn.Module, dict[str, Any]]
"""A denoiser and the arguments of one call."""

Make = Callable[[Draw, int], Made]
"""Makes both, given the batch size."""


def image_ids(*before: int) -> Tensor:
    """Position ids of the image's tokens, row by row; `before` and after it zeros."""
    rows, columns = torch.meshgrid(
        torch.arange(float(HEIGHT)), torch.arange(float(WIDTH)), indexing="ij"
    )
    first = [torch.full_like(rows, value) for value in before or (0.0,)]
    return torch.stack([*first, rows, columns], -1).flatten(0, 1)


def half_time(batch: int) -> Tensor:
    """A timestep of denoisers that count it from 0 to 1."""
    return torch.full((batch,), 0.7)


def step_500(batch: int) -> Tensor:
    """One of those that count it to 1000."""
    return torch.full((batch,), 500)
