"""What the hooks of a run did."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lens.engine.registration import Fired, Registration, describe


@dataclass(frozen=True)
class ReportRow:
    """One hook at one hook point.

    Attributes:
        site: The Site that was asked for.
        hook: The hook function.
        name: The hook point.
        fired: How often it was called: once for each evaluation and branch.
        edited: How often it changed what it saw.
        change: Mean absolute change of the edited values, over all edits; 0 without edits.
    """

    site: str
    hook: str
    name: str
    fired: int
    edited: int
    change: float


@dataclass(frozen=True)
class Report:
    """A table of what every hook did; prints as text and in notebooks.

    Attributes:
        rows: One row for each hook at each hook point.
    """

    rows: tuple[ReportRow, ...]

    @classmethod
    def of(cls, registrations: Sequence[Registration]) -> Report:
        """The report of some hooks. Reading it waits once for each device, however many rows."""
        found = [
            (registration, name, fired)
            for registration in registrations
            for name, fired in registration.fired.items()
        ]
        changes = _changes([fired for _, _, fired in found])
        return cls(
            tuple(
                ReportRow(
                    site=repr(registration.site),
                    hook=describe(registration.fn),
                    name=name,
                    fired=fired.calls,
                    edited=fired.edits,
                    change=change,
                )
                for (registration, name, fired), change in zip(found, changes, strict=True)
            )
        )

    def __iter__(self) -> Iterator[ReportRow]:
        """The rows."""
        return iter(self.rows)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def __str__(self) -> str:
        """Aligned columns."""
        if not self.rows:
            return "no hooks"
        cells = [
            ("hook point", "hook", "fired", "edited", "mean |change|"),
            *map(_cells, self.rows),
        ]
        widths = [max(len(row[column]) for row in cells) for column in range(5)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in cells
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = "".join(
            f"<th>{name}</th>"
            for name in ("hook point", "hook", "fired", "edited", "mean |change|")
        )
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(row)) + "</tr>"
            for row in self.rows
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _changes(fired: Sequence[Fired]) -> list[float]:
    """The mean absolute change of each, 0 without edits."""
    found = [0.0] * len(fired)
    by_device: dict[torch.device, list[tuple[int, Tensor]]] = {}
    for number, one in enumerate(fired):
        if one.change is not None:
            by_device.setdefault(one.change.device, []).append((number, one.change))
    for changes in by_device.values():
        sums = torch.stack([change for _, change in changes]).tolist()
        for (number, _), total in zip(changes, sums, strict=True):
            found[number] = total / fired[number].edits
    return found


def _cells(row: ReportRow) -> tuple[str, ...]:
    change = f"{row.change:.3g}" if row.edited else ""
    return (row.name, row.hook, str(row.fired), str(row.edited), change)
