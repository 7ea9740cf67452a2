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

Place = tuple[int, int]


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
        self._numbers = {cell.place: number for number, cell in enumerate(self.cells)}
        self._columns = {step: number for number, step in enumerate(self.steps)}

    def has(self, cell: Cell, places: Sequence[Place]) -> bool:
        """Whether a cell is known at all of some places."""
        return bool(self.done[self._numbers[cell.place]][self._at(places)].all())

    def has_sides(self, places: Sequence[Place]) -> bool:
        """Whether source and base are."""
        return bool(self.done[-2:][(slice(None), *self._at(places))].all())

    def put(self, cell: Cell, places: Sequence[Place], found: Tensor) -> None:
        """Note the scores of a cell."""
        self._put(self._numbers[cell.place], places, found)
        if self.kept is not None and time.monotonic() - self._written > PAUSE:
            self.write()

    def put_sides(self, places: Sequence[Place], source: Tensor, base: Tensor) -> None:
        """Note those of source and base."""
        self._put(-2, places, source)
        self._put(-1, places, base)

    def _put(self, number: int, places: Sequence[Place], found: Tensor) -> None:
        at = self._at(places)
        self.scores[number][at] = found.detach().cpu().to(torch.float64)
        self.done[number][at] = True

    def _at(self, places: Sequence[Place]) -> tuple[list[int], list[int]]:
        return [self._columns[step] for step, _ in places], [sample for _, sample in places]

    def write(self) -> None:
        """Keep what is known; a write that is cut short leaves the one before."""
        if self.kept is not None:
            self.kept.write(self.scores, self.done)
            self._written = time.monotonic()
