"""Patterns reduced to a few numbers for each head while a model runs.

Source: the quantities are the usual ones of the literature on attention heads (entropy and distance
as in Do Vision Transformers See Like Convolutional Neural Networks?, arXiv 2108.08810, section 4;
mass on a token as in DAAM, arXiv 2210.04885). The split of joint attention is our own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_lens import HookContext
from diffusion_lens.authoring import as_tensor
from diffusion_lens.border import public

VALUES = ("entropy", "distance", "text", "image", "own")
"""What there is a number of for each head at each step."""


def pattern_entropy(
    pattern: Float[Tensor, "batch head query key"],
) -> Float[Tensor, "batch head"]:
    """Mean entropy of rows, in nats: 0 where a row looks at one key, log(keys) where at all alike.

    Args:
        pattern: Whole rows; each sums to 1.
    """
    return torch.special.entr(pattern).sum(-1).mean(-1)


def pattern_distance(
    pattern: Float[Tensor, "batch head query key"],
    queries: Sequence[int],
    grid: Sequence[int],
) -> Float[Tensor, "batch head"]:
    """How far heads look within the image, in units of its diagonal; frames count as no distance.

    Args:
        pattern: Attention to the tokens of the image.
        queries: The image tokens that ask.
        grid: (height, width) or (frames, height, width).

    Returns:
        Mean distance weighted by attention, in [0, 1]; attention to other streams does not count.
    """
    axes = [torch.arange(size, dtype=pattern.dtype, device=pattern.device) for size in grid]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(grid))[:, -2:]
    distances = torch.cdist(places[as_tensor(tuple(queries), pattern)], places)
    diagonal = max(math.hypot(grid[-2] - 1, grid[-1] - 1), 1.0)
    mean = (pattern * distances).sum(-1) / pattern.sum(-1).clamp_min(1e-30)
    return mean.mean(-1) / diagonal


class PatternStatistics:
    """A reader of whole rows of patterns; keeps a few numbers for each head and step.

    Args:
        every: For each block, every how many image tokens ask.
        positions: The text tokens whose mass is kept; None for all.
    """

    read_only = True
    keeps = False

    @public
    def __init__(self, every: Mapping[int, int], positions: Sequence[int] | None) -> None:
        """Start from nothing."""
        self.every = every
        self.positions = None if positions is None else tuple(positions)
        self.found: dict[tuple[int, int], dict[str, Tensor]] = {}
        self.heads: dict[int, tuple[int, ...]] = {}

    def __call__(
        self, activation: Float[Tensor, "batch head query key"], hook: HookContext
    ) -> None:
        """Reduce the rows of one block."""
        assert hook.heads is not None
        pattern, grid = activation.detach(), hook.grid
        count = math.prod(grid)
        asking = range(0, count, self.every[hook.layer()])
        pattern = pattern[:, :, : len(asking)]  # reference images follow the grid
        values = {"entropy": pattern_entropy(pattern)}
        if "txt" in hook.streams:
            text = pattern[..., hook.streams["txt"]]
            values["text"] = text.sum(-1).mean(-1)
            if self.positions is not None:
                text = text.index_select(-1, as_tensor(self.positions, text))
            values["mass"] = text.mean(-2)
        if "img" in hook.streams:
            image = pattern[..., hook.streams["img"]]
            rows = torch.arange(len(asking), device=pattern.device)
            own = image[:, :, rows, rows * self.every[hook.layer()]]
            values["own"] = own.mean(-1)
            values["image"] = image.sum(-1).mean(-1) - values["own"]
            values["distance"] = pattern_distance(image[..., :count], asking, grid)
        self.heads[hook.layer()] = hook.heads
        self.found[hook.step, hook.layer()] = {k: v.float() for k, v in values.items()}

    def table(self, name: str) -> Tensor | None:
        """One of the values with axes batch, step, head (of all blocks), and token for the mass."""
        steps = sorted({step for step, _ in self.found})
        if not any(name in one for one in self.found.values()):
            return None
        rows = [
            torch.cat([self.found[step, block][name] for block in sorted(self.heads)], 1)
            for step in steps
        ]
        return torch.stack(rows, 1)

    def __repr__(self) -> str:
        """As a report shows it."""
        return "PatternStatistics()"
