"""What the hooks of a run did."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from diffusion_lens.engine.registration import Registration, describe


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
        """The report of some hooks. Reading it waits for the device once."""
        return cls(
            tuple(
                ReportRow(
                    site=repr(registration.site),
                    hook=describe(registration.fn),
                    name=name,
                    fired=fired.calls,
                    edited=fired.edits,
                    change=0.0 if fired.change is None else float(fired.change) / fired.edits,
                )
                for registration in registrations
                for name, fired in registration.fired.items()
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


def _cells(row: ReportRow) -> tuple[str, ...]:
    change = f"{row.change:.3g}" if row.edited else ""
    return (row.name, row.hook, str(row.fired), str(row.edited), change)
