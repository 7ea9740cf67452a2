"""The scores of a sweep as they come in, on disk too if it shall be resumed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion_lens.analyses.patching.kept import Kept
from diffusion_lens.analyses.patching.plan import Cell

PAUSE = 10.0
"""Seconds between two writes."""

Moment = tuple[int, int]
"""A step of the trajectory (or the first of a window), and a sample."""


@dataclass(eq=False)
class Scoreboard:
    """Scores of every cell, step and sample, and of source and base.

    Attributes:
        cells: The patches.
        steps: The steps (or windows) that are scored apart.
        samples: How many samples there are.
        kept: The folder to keep scores in and to take up what is known from, or None.
        scores: Axes cell, step, sample; source and base are the last two cells.
        done: Which are known, since a score may be nan.
    """

    cells: Sequence[Cell]
    steps: tuple[int, ...]
    samples: int
    kept: Kept | None = None
    scores: Tensor = field(init=False)
    done: Tensor = field(init=False)
    _written: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        """Start with what is kept.

        Raises:
            PatchingError: If that is another sweep's, or damaged.
        """
        shape = (len(self.cells) + 2, len(self.steps), self.samples)
        self.scores = torch.full(shape, torch.nan, dtype=torch.float64)
        self.done = torch.zeros(shape, dtype=torch.bool)
        found = None if self.kept is None else self.kept.read(shape=shape)
        if found is not None:
            self.scores, self.done = found
        self._numbers = {cell.index: number for number, cell in enumerate(self.cells)}
        self._columns = {step: number for number, step in enumerate(self.steps)}

    def has(self, cell: Cell, moments: Sequence[Moment]) -> bool:
        """Whether a cell is known at all of some moments."""
        return bool(self.done[self._numbers[cell.index]][self._at(moments)].all())

    def has_sides(self, moments: Sequence[Moment]) -> bool:
        """Whether source and base are."""
        return bool(self.done[-2:][(slice(None), *self._at(moments))].all())

    def put(self, cell: Cell, moments: Sequence[Moment], found: Tensor) -> None:
        """Note the scores of a cell."""
        self._put(self._numbers[cell.index], moments, found)
        if self.kept is not None and time.monotonic() - self._written > PAUSE:
            self.write()

    def put_sides(self, moments: Sequence[Moment], source: Tensor, base: Tensor) -> None:
        """Note those of source and base."""
        self._put(-2, moments, source)
        self._put(-1, moments, base)

    def _put(self, number: int, moments: Sequence[Moment], found: Tensor) -> None:
        at = self._at(moments)
        self.scores[number][at] = found.detach().cpu().to(torch.float64)
        self.done[number][at] = True

    def _at(self, moments: Sequence[Moment]) -> tuple[list[int], list[int]]:
        return [self._columns[step] for step, _ in moments], [sample for _, sample in moments]

    def write(self) -> None:
        """Keep what is known; a write that is cut short leaves the one before."""
        if self.kept is not None:
            self.kept.write(self.scores, self.done)
            self._written = time.monotonic()
