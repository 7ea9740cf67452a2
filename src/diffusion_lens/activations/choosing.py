"""Which tokens of an activation are kept: all, a seeded choice, or the centres of a grid."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from diffusion_lens.errors import StoreError

GRID = re.compile(r"grid:(\d+(?:x\d+){1,2})")
KEPT = 4096
"""How many choices are remembered: those of a batch come again at every site and step."""


@dataclass(frozen=True)
class TokenChoice:
    """What `tokens=` asks for.

    Attributes:
        count: How many tokens of each sample; None for all.
        cells: (frames, height, width) or (height, width) of a grid; None where none is asked for.
    """

    count: int | None = None
    cells: tuple[int, ...] | None = None

    @classmethod
    def of(cls, tokens: str | int) -> TokenChoice:
        """Read `tokens=`.

        Raises:
            StoreError: If it is no choice.
        """
        if tokens == "all":
            return cls()
        if isinstance(tokens, int) and not isinstance(tokens, bool) and tokens > 0:
            return cls(count=tokens)
        found = GRID.fullmatch(tokens) if isinstance(tokens, str) else None
        cells = tuple(map(int, found[1].split("x"))) if found else ()
        if not cells or 0 in cells:
            raise StoreError(
                f"tokens={tokens!r}: give 'all', how many of each sample, such as 64, or a grid "
                "such as 'grid:8x8' ('grid:4x8x8' where frames are chosen, too)"
            )
        return cls(cells=cells)

    def of_sample(
        self, total: int, grid: tuple[int, ...] | None, first: int | None, *, sample: str, name: str
    ) -> Tensor | None:
        """Which of a sample's tokens are kept, in their order; None for all.

        Args:
            total: How many tokens there are.
            grid: Token grid of the image here, or None where there is none.
            first: Where the image begins along the tokens; None where it does not lie in one piece.
            sample: What the choice hangs on: the prompt and seed as text.
            name: The hook point, for errors.

        Raises:
            StoreError: If a grid is asked for where the tokens are none, or are fewer.
        """
        if self.cells is not None:
            return _centres(self.cells, grid, first, name)
        if self.count is None or self.count >= total:
            return None
        return _drawn(self.count, total, sample)

    def __str__(self) -> str:
        """As it was asked for."""
        if self.cells is not None:
            return f"grid:{'x'.join(map(str, self.cells))}"
        return "all" if self.count is None else str(self.count)


@lru_cache(maxsize=KEPT)
def _drawn(count: int, total: int, sample: str) -> Tensor:
    """A choice that hangs on the sample and on how many tokens there are, and on nothing else."""
    seed = int.from_bytes(hashlib.sha256(sample.encode()).digest()[:7])
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(total, generator=generator)[:count].sort().values


@lru_cache(maxsize=KEPT)
def _centres(
    cells: tuple[int, ...], grid: tuple[int, ...] | None, first: int | None, name: str
) -> Tensor:
    if grid is None or first is None:
        raise StoreError(
            f"tokens='grid:…' needs the image's grid, and the tokens of {name} are none, or only a "
            "part of one; collect it apart, with tokens='all' or a number"
        )
    wanted = cells if len(cells) == len(grid) else (*grid[: len(grid) - len(cells)], *cells)
    if len(wanted) != len(grid) or any(few < many for few, many in zip(grid, wanted, strict=True)):
        raise StoreError(
            f"{name} has a grid of {'x'.join(map(str, grid))} tokens, from which no "
            f"{'x'.join(map(str, cells))} can be chosen; ask for a coarser grid, for tokens='all', "
            "or collect sites of other grids apart"
        )
    lines = [_middles(many, few) for many, few in zip(grid, wanted, strict=True)]
    strides = [math.prod(grid[at + 1 :]) for at in range(len(grid))]
    places = [_place(at, strides) for at in itertools.product(*lines)]
    return torch.tensor(places) + first


def _middles(length: int, cells: int) -> list[int]:
    """The token that the middle of each of some equal cells lies in; the later one of two."""
    return [(2 * cell + 1) * length // (2 * cells) for cell in range(cells)]


def _place(at: Sequence[int], strides: Sequence[int]) -> int:
    return sum(one * stride for one, stride in zip(at, strides, strict=True))
