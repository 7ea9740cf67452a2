"""The scores of a sweep as they come in, on disk too if it shall be resumed."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusion_lens.analyses.patching.plan import Cell
from diffusion_lens.errors import PatchingError

SCORES, ABOUT = "scores.safetensors", "sweep.json"
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
        scores: Axes cell, step, sample; source and base are the last two cells.
        done: Which are known, since a score may be nan.
        folder: Where to keep them, or None.
    """

    cells: Sequence[Cell]
    steps: tuple[int, ...]
    samples: int
    folder: Path | None = None
    scores: Tensor = field(init=False)
    done: Tensor = field(init=False)
    _written: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        """Start empty."""
        shape = (len(self.cells) + 2, len(self.steps), self.samples)
        self.scores = torch.full(shape, torch.nan, dtype=torch.float64)
        self.done = torch.zeros(shape, dtype=torch.bool)
        self._numbers = {id(cell): number for number, cell in enumerate(self.cells)}
        self._columns = {step: number for number, step in enumerate(self.steps)}

    def has(self, cell: Cell, places: Sequence[Place]) -> bool:
        """Whether a cell is known at all of some places."""
        return bool(self.done[self._numbers[id(cell)]][self._at(places)].all())

    def has_sides(self, places: Sequence[Place]) -> bool:
        """Whether source and base are."""
        return bool(self.done[-2:][(slice(None), *self._at(places))].all())

    def put(self, cell: Cell, places: Sequence[Place], found: Tensor) -> None:
        """Note the scores of a cell."""
        self._put(self._numbers[id(cell)], places, found)
        if self.folder is not None and time.monotonic() - self._written > PAUSE:
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

    # -- on disk ------------------------------------------------------------------------------

    def write(self) -> None:
        """Write what is known; a write that is cut short leaves the one before."""
        if self.folder is not None:
            partial = self.folder / (SCORES + ".partial")
            save_file({"scores": self.scores, "done": self.done}, partial)
            partial.replace(self.folder / SCORES)
            self._written = time.monotonic()

    def resume(self, about: Mapping[str, Any]) -> None:
        """Take up what an earlier run of the same sweep wrote.

        Raises:
            PatchingError: If another sweep lies in the folder.
        """
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        told = json.dumps(about, default=str, sort_keys=True, indent=1)
        page = self.folder / ABOUT
        if page.is_file() and page.read_text(encoding="utf-8") != told:
            before = json.loads(page.read_text(encoding="utf-8"))
            now = json.loads(told)
            differ = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
            raise PatchingError(
                f"{self.folder} holds another sweep, which differs in {differ}; give another "
                "resume= folder, or delete that one"
            )
        page.write_text(told, encoding="utf-8")
        if (self.folder / SCORES).is_file():
            found = load_file(self.folder / SCORES)
            self.scores, self.done = found["scores"], found["done"]
