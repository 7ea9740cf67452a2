"""The hook that puts, in each row of a batch, the source's values in the place of one cell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion_lens import HookContext, Site
from diffusion_lens.analyses.patching.plan import Cell, Change, Plan
from diffusion_lens.authoring import Part, put, take
from diffusion_lens.errors import PatchingError
from diffusion_lens.showing.one_line import counted

Lookup = Callable[[Tensor, HookContext], Tensor]
"""Gives what stands in for an activation, for every recorded row."""


@dataclass(eq=False)
class Batch:
    """Several patches as rows of one batch: each cell once for every one of some recorded rows.

    Attributes:
        cells: The patches.
        recorded: The recorded rows that each is run on.
    """

    cells: Sequence[Cell]
    recorded: Tensor

    @property
    def rows(self) -> Tensor:
        """For each row of the batch, the recorded row."""
        return self.recorded.repeat(len(self.cells))

    def changes(self) -> Iterator[tuple[slice, Change]]:
        """Every change with the rows that it is made in."""
        count = len(self.recorded)
        for number, cell in enumerate(self.cells):
            for change in cell.changes:
                yield slice(number * count, (number + 1) * count), change

    def hooks(
        self, plan: Plan, lookup: Lookup, *, steps: Mapping[str, Sequence[int]] | None = None
    ) -> list[tuple[Site, PutRows]]:
        """A hook for each hook point that a cell changes.

        Args:
            plan: For the Sites.
            lookup: The source's values.
            steps: For each hook point the steps at which to patch; None where there are none,
                in single evaluations.
        """
        hooks: dict[str, PutRows] = {}
        for rows, change in self.changes():
            hook = hooks.setdefault(change.name, PutRows(lookup, self.recorded))
            hook.changes.append((rows, change))
        at = dict.fromkeys(hooks) if steps is None else steps
        return [(plan.sites[name].with_(steps=at[name]), hook) for name, hook in hooks.items()]


@dataclass(eq=False)
class PutRows:
    """A hook that replaces another part in each of several stretches of rows."""

    lookup: Lookup
    recorded: Tensor
    changes: list[tuple[slice, Change]] = field(default_factory=list)

    def __call__(self, activation: Tensor, hook: HookContext) -> Tensor:
        """Replace the parts in place."""
        recorded = self.lookup(activation, hook).to(activation)
        refuse_other_length(hook.name, recorded, activation, [change for _, change in self.changes])
        source = recorded.index_select(0, self.recorded.to(recorded.device))
        for rows, change in self.changes:
            mine, theirs = part_along(hook.axes, change)
            put(activation, ((0, rows), *mine), take(source, theirs))
        return activation

    def __repr__(self) -> str:
        """As a report shows it."""
        return f"patch({counted(len(self.changes), 'row')} of cells)"


def refuse_other_length(name: str, source: Tensor, base: Tensor, changes: Sequence[Change]) -> None:
    """Refuse values of another size, unless single positions of them are put in place.

    Raises:
        PatchingError: Naming the hook point and both shapes, without the batch.
    """
    theirs, mine = tuple(source.shape[1:]), tuple(base.shape[1:])
    if theirs != mine and any(change.pos is None for change in changes):
        raise PatchingError(
            f"{name} has the shape {theirs} in the source and {mine} in the base, so that places "
            "do not correspond. Embeddings cannot be aligned by words: give both runs text of one "
            "length, or patch image-side sites"
        )


def part_along(axes: Sequence[str], change: Change) -> tuple[Part, Part]:
    """What a change replaces of a whole hook point, in base and source."""
    heads: Part = () if change.heads is None else ((axes.index("head"), change.heads),)
    if change.pos is None or change.source_pos is None:
        return heads, heads
    axis = axes.index("pos")
    return (*heads, (axis, change.pos)), (*heads, (axis, change.source_pos))


def packed(cells: Sequence[Cell], recorded: Sequence[int], *, rows: int) -> Iterator[Batch]:
    """Batches of at most `rows` rows (or of a single cell, where that has more)."""
    count = max(1, rows // len(recorded))
    for start in range(0, len(cells), count):
        yield Batch(cells[start : start + count], torch.tensor(recorded))
