"""Tables as heat maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from diffusion_lens.border import public
from diffusion_lens.errors import FigureError
from diffusion_lens.showing.one_line import counted
from diffusion_lens.viz.style import ABSENT, MOST_ROWS, colour_axis, finish, ticks
from diffusion_lens.viz.values import array, labels, limits, plain


@public
def head_grid(
    values: Any,
    *,
    rows: Sequence[Any],
    columns: Sequence[Any],
    title: str | None = None,
    note: str = "",
    value_name: str = "",
    zero_centred: bool | None = None,
    marks: Mapping[float, str] | None = None,
    row_title: str = "",
    column_title: str = "",
    row_notes: Sequence[Any] | None = None,
    column_notes: Sequence[Any] | None = None,
    cells: Sequence[Sequence[Any]] | None = None,
) -> go.Figure:
    """A table as a heat map: concept by head, step by head, block by head, a patching grid.

    Args:
        values: Numbers with axes row, column; NaN is absent and stays blank.
        rows: Labels of the rows, from the top.
        columns: Labels of the columns.
        title: Above the figure.
        note: A sentence that says what the numbers mean; below the title.
        value_name: What the numbers are; at the colour scale and where the pointer is.
        zero_centred: Whether zero is white, negative blue and positive red. By default, where there
            are negative values.
        marks: What some values mean, such as `{0: "nothing", 1: "all"}`; said at the colour scale.
        row_title: What the rows are.
        column_title: What the columns are.
        cells: For the pointer a name of each cell, in place of those of its row and column.
        row_notes: More about each row, for the pointer, such as the module of a block.
        column_notes: Likewise of each column.

    Raises:
        FigureError: If labels and values do not fit together.
    """
    table = array(values, axes="row column")
    row_labels = labels(rows, table.shape[0], name="rows")
    column_labels = labels(columns, table.shape[1], name="columns")
    centred = bool((table < 0).any()) if zero_centred is None else zero_centred
    names = np.empty((*table.shape, 2), dtype=object)
    names[..., 0] = np.array(_pointed(row_labels, row_notes, name="row_notes"))[:, None]
    names[..., 1] = np.array(_pointed(column_labels, column_notes, name="column_notes"))[None]
    where = f"{_named(row_title)}%{{customdata[0]}}<br>{_named(column_title)}%{{customdata[1]}}<br>"
    if cells is not None:
        names[..., 0] = np.array(_cells(cells, table.shape))
        where = "%{customdata[0]}<br>"
    heat = go.Heatmap(
        z=table,
        customdata=names,
        coloraxis="coloraxis",
        hoverongaps=False,
        hovertemplate=f"{where}{_named(value_name)}%{{z:.4g}}<extra></extra>",
        xgap=1,
        ygap=1,
    )
    return finish(
        go.Figure(heat),
        title=title,
        note=note,
        coloraxis=colour_axis(limits(table), value_name, zero_centred=centred, marks=marks),
        xaxis={**ticks(column_labels, column_title), "automargin": True},
        yaxis={
            **ticks(row_labels, row_title, most=MOST_ROWS),
            "autorange": "reversed",
            "automargin": True,
        },
        plot_bgcolor=ABSENT,
        height=max(260, min(900, 130 + 22 * len(row_labels))) + 5 * max(map(len, column_labels)),
    )


def _pointed(shown: Sequence[str], notes: Sequence[Any] | None, *, name: str) -> list[str]:
    """What the pointer says of each row or column."""
    if notes is None:
        return list(shown)
    more = labels(notes, len(shown), name=name)
    return [f"{one} ({note})" if note else one for one, note in zip(shown, more, strict=True)]


def _cells(given: Sequence[Sequence[Any]], shape: tuple[int, ...]) -> list[list[str]]:
    if len(given) != shape[0]:
        raise FigureError(f"cells has {counted(len(given), 'row')} for {shape[0]}")
    return [labels(row, shape[1], name="cells") for row in given]


def _named(name: str) -> str:
    """A name and a space; braces would be read as part of the template."""
    return f"{plain(name)} ".replace("{", "(").replace("}", ")") if name else ""
