"""A table of hook points: what there is, how large, where in diffusers, what is missing and why."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass

from diffusion_lens.activation_cache import readable_bytes

HEADER = ("hook point", "axes", "shape", "heads", "grid", "bytes", "module", "note")


@dataclass(frozen=True)
class HookRow:
    """One hook point.

    Attributes:
        name: Its name.
        axes: Its axes.
        shape: Sizes for one prompt at the model's native size, with the text length that is usual
            for the family; None where they are not known.
        heads: Number of heads, or None.
        grid: Token grid of the image there.
        nbytes: Bytes of one activation of that shape in the model's precision, or None. (Scores and
            patterns of half-precision models are float32, twice as much.)
        module: The native module that it is read at.
        note: Why edits have no effect, or why the name is absent; empty otherwise.
        present: Whether the model has it.
    """

    name: str
    axes: tuple[str, ...]
    shape: tuple[int | None, ...]
    heads: int | None
    grid: tuple[int, ...]
    nbytes: int | None
    module: str
    note: str
    present: bool = True

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        if not self.present:
            return (self.name, "", "", "", "", "", "", f"absent: {self.note}")
        shape = "x".join("?" if size is None else str(size) for size in self.shape)
        return (
            self.name,
            " ".join(self.axes),
            shape,
            "" if self.heads is None else str(self.heads),
            "x".join(map(str, self.grid)),
            "" if self.nbytes is None else readable_bytes(self.nbytes),
            self.module,
            f"dead: {self.note}" if self.note else "",
        )


@dataclass(frozen=True)
class HookTable:
    """Rows of hook points; prints as text and in notebooks.

    Attributes:
        title: What it is a table of.
        rows: The rows.
    """

    title: str
    rows: tuple[HookRow, ...]

    def __iter__(self) -> Iterator[HookRow]:
        """The rows."""
        return iter(self.rows)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def __str__(self) -> str:
        """Aligned columns."""
        cells = [HEADER, *(row.cells() for row in self.rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(HEADER))]
        lines = (
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in cells
        )
        return "\n".join((self.title, *lines))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in HEADER)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row.cells()) + "</tr>"
            for row in self.rows
        )
        caption = f"<caption>{html.escape(self.title)}</caption>"
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
