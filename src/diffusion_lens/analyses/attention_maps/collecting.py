"""Adding up patterns while a model runs, and the one resizing at the end.

Held at any time: one sum for each resolution (and for each block, head or step that is kept apart).
Sums are in float32; nothing grows with the number of steps unless steps are kept apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diffusion_lens import HookContext
from diffusion_lens.border import public

Pair = tuple[int, int]
"""Block and head."""

AXES = ("step", "block", "head")
"""What can be kept apart."""


@dataclass
class Sum:
    """Patterns added up.

    Attributes:
        value: Axes batch, (head), query, key; the head axis where heads are kept apart.
        weight: Sum of the heads' weights over everything that was added.
    """

    value: Tensor
    weight: float


@dataclass(frozen=True)
class Aggregation:
    """What is kept apart and how the rest is put together.

    Attributes:
        keep: Names of `AXES`.
        weights: Weight of each (block, head); None for 1 each.
        apart: Blocks whose heads are clamped one by one after resizing.
        over_steps: `"mean"` or `"sum"`.
        upsample: Mode of interpolation; as `torch.nn.functional.interpolate` calls it.
    """

    keep: frozenset[str] = frozenset()
    weights: Mapping[Pair, float] | None = None
    apart: frozenset[int] = frozenset()
    over_steps: str = "mean"
    upsample: str = "bicubic"


class PatternSums:
    """A reader of patterns whose queries are the image; `result()` gives maps.

    Args:
        aggregation: What is kept apart.
    """

    read_only = True
    keeps = False

    @public
    def __init__(self, aggregation: Aggregation) -> None:
        """Start from nothing."""
        self.aggregation = aggregation
        self.sums: dict[tuple[int | None, int], Sum] = {}
        self.calls: dict[tuple[int | None, int], int] = {}
        self.grids: dict[int, tuple[int, ...]] = {}
        self.heads: dict[int, tuple[int, ...]] = {}
        self.steps: dict[int, None] = {}
        self._shared: dict[tuple[int, ...], int] = {}
        self._factors: dict[int, Tensor] = {}

    def __call__(
        self, activation: Float[Tensor, "batch head query key"], hook: HookContext
    ) -> None:
        """Add one pattern."""
        assert hook.heads is not None
        block = hook.layer()
        if block not in self.grids:
            self.grids[block], self.heads[block] = hook.grid, hook.heads
        self.steps[hook.step] = None
        self.add(activation.detach(), block, hook.step if "step" in self.aggregation.keep else None)

    def add(
        self, pattern: Float[Tensor, "batch head query key"], block: int, step: int | None
    ) -> None:
        """Add a pattern of a block whose grid and heads are known."""
        place = (step, self._place(block))
        self.calls[step, block] = self.calls.get((step, block), 0) + 1
        weight = sum(self.weights(block))
        held = self.sums.get(place)
        if held is not None:
            held.weight += weight
            if self._apart(block):
                held.value.add_(pattern)
            else:
                _add_over_heads(held.value, pattern, self._on_heads(pattern, block))
        elif self._apart(block):
            self.sums[place] = Sum(pattern.clone(), weight)
        else:
            self.sums[place] = Sum(_over_heads(pattern, self._on_heads(pattern, block)), weight)

    def weights(self, block: int) -> list[float]:
        """The weights of a block's heads."""
        given = self.aggregation.weights
        return [1.0 if given is None else given[block, head] for head in self.heads[block]]

    def _on_heads(self, pattern: Tensor, block: int) -> Tensor:
        """The weights beside a pattern; made once, since a GPU waits for each copy to it."""
        if block not in self._factors:
            self._factors[block] = pattern.new_tensor(self.weights(block))
        return self._factors[block]

    def _apart(self, block: int) -> bool:
        return "head" in self.aggregation.keep or block in self.aggregation.apart

    def _place(self, block: int) -> int:
        """The block under whose number a pattern is added: the first one of the same grid."""
        if self._apart(block) or self.aggregation.keep & {"block", "head"}:
            return block
        return self._shared.setdefault(self.grids[block], block)

    @property
    def pairs(self) -> list[Pair]:
        """Every (block, head) that was added."""
        return [(block, head) for block in sorted(self.heads) for head in self.heads[block]]

    def finest(self) -> tuple[int, ...]:
        """Height and width of the finest grid."""
        return max((grid[-2:] for grid in self.grids.values()), key=math.prod)

    def result(self, size: Sequence[int] | None = None) -> Float[Tensor, ...]:
        """Maps with axes batch, (step), (block or head), token, (frame), height, width.

        Args:
            size: Height and width; by default those of the finest grid.
        """
        size = self.finest() if size is None else tuple(size)
        steps = sorted(self.steps) if "step" in self.aggregation.keep else [None]
        found = torch.stack([self._of_step(step, size) for step in steps], 1)
        return found if "step" in self.aggregation.keep else found.squeeze(1)

    def _of_step(self, step: int | None, size: Sequence[int]) -> Tensor:
        blocks = [block for one, block in self.sums if one == step]
        if "head" in self.aggregation.keep:
            return torch.cat([self._of_heads(step, block, size) for block in sorted(blocks)], 1)
        if "block" in self.aggregation.keep:
            return torch.stack([self._mean(step, [block], size) for block in sorted(blocks)], 1)
        return self._mean(step, blocks, size)

    def _of_heads(self, step: int | None, block: int, size: Sequence[int]) -> Tensor:
        maps = self._resized(step, block, size).clamp_(min=0)
        return maps if self.aggregation.over_steps == "sum" else maps / self.calls[step, block]

    def _mean(self, step: int | None, blocks: Sequence[int], size: Sequence[int]) -> Tensor:
        """Weighted mean over heads and blocks."""
        total, weight = None, 0.0
        for block in blocks:
            maps = self._resized(step, block, size)
            if self._apart(block):
                maps = _over_heads(maps.clamp_(min=0), self._on_heads(maps, block))
            total = maps if total is None else total.add_(maps)
            weight += self.sums[step, block].weight
        assert total is not None
        total = total.clamp_(min=0) / weight
        if self.aggregation.over_steps == "mean":
            return total
        return total * max(count for (one, _), count in self.calls.items() if one == step)

    def _resized(self, step: int | None, block: int, size: Sequence[int]) -> Tensor:
        grid = self.grids[block]
        value = self.sums[step, block].value
        # Reference images follow the image's own tokens and are no part of its grid.
        return resized(
            value.narrow(-2, 0, math.prod(grid)).mT.unflatten(-1, grid), size, self.aggregation
        )

    def __repr__(self) -> str:
        """As a report shows it."""
        return f"PatternSums({', '.join(sorted(self.aggregation.keep)) or 'one map'})"


def _over_heads(value: Tensor, weights: Float[Tensor, " head"]) -> Tensor:
    """The weighted sum over axis 1, in the layout of `value`."""
    turned = not value.is_contiguous() and value.mT.is_contiguous()
    laid_out = value.mT if turned else value
    total = laid_out.new_zeros(len(value), *laid_out.shape[2:])
    total = total.mT if turned else total
    _add_over_heads(total, value, weights)
    return total


def _add_over_heads(total: Tensor, value: Tensor, weights: Float[Tensor, " head"]) -> None:
    """Add the weighted sum over axis 1, as one product: it needs no memory of its own."""
    if not total.is_contiguous():
        total, value = total.mT, value.mT
    rows = total.view(len(total), 1, -1)
    rows.baddbmm_(weights.expand(len(total), 1, -1), value.flatten(2))


def resized(maps: Tensor, size: Sequence[int], aggregation: Aggregation = Aggregation()) -> Tensor:
    """Maps with their last two axes brought to a size; a fresh tensor, not clamped.

    Args:
        maps: Any axes, then height and width.
        size: Height and width.
        aggregation: Gives the mode of interpolation.
    """
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps.clone(memory_format=torch.contiguous_format)
    options = {} if aggregation.upsample.startswith("nearest") else {"align_corners": False}
    flat = maps.reshape(1, -1, *maps.shape[-2:])
    found = F.interpolate(flat, size=tuple(size), mode=aggregation.upsample, **options)
    return found.reshape(*maps.shape[:-2], *size)
