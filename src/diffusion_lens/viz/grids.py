"""Tables as heat maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from diffusion_lens.border import public
from diffusion_lens.viz.style import ABSENT, colour_axis, finish, ticks
from diffusion_lens.viz.values import array, labels, limits, plain


@public
def head_grid(
    values: Any,
    *,
    rows: Sequence[Any],
    columns: Sequence[Any],
    title: str | None = None,
    value_name: str = "",
    zero_centred: bool | None = None,
    row_title: str = "",
    column_title: str = "",
) -> go.Figure:
    """A table as a heat map: concept by head, step by head, block by head, a patching grid.

    Args:
        values: Numbers with axes row, column; NaN is absent and stays blank.
        rows: Labels of the rows, from the top.
        columns: Labels of the columns.
        title: Above the figure.
        value_name: What the numbers are; at the colour scale and where the pointer is.
        zero_centred: Whether zero is white, negative blue and positive red. By default, where there
            are negative values.
        row_title: What the rows are.
        column_title: What the columns are.

    Raises:
        FigureError: If labels and values do not fit together.
    """
    table = array(values, axes="row column")
    row_labels = labels(rows, table.shape[0], name="rows")
    column_labels = labels(columns, table.shape[1], name="columns")
    centred = bool((table < 0).any()) if zero_centred is None else zero_centred
    names = np.empty((*table.shape, 2), dtype=object)
    names[..., 0], names[..., 1] = np.array(row_labels)[:, None], np.array(column_labels)[None]
    heat = go.Heatmap(
        z=table,
        customdata=names,
        coloraxis="coloraxis",
        hoverongaps=False,
        hovertemplate=f"{_named(row_title)}%{{customdata[0]}}<br>"
        f"{_named(column_title)}%{{customdata[1]}}<br>{_named(value_name)}%{{z:.4g}}<extra></extra>",
        xgap=1,
        ygap=1,
    )
    return finish(
        go.Figure(heat),
        title=title,
        coloraxis=colour_axis(limits(table), value_name, zero_centred=centred),
        xaxis={**ticks(column_labels, column_title), "automargin": True},
        yaxis={**ticks(row_labels, row_title), "autorange": "reversed", "automargin": True},
        plot_bgcolor=ABSENT,
        height=max(260, min(900, 130 + 22 * len(row_labels))) + 5 * max(map(len, column_labels)),
    )


def _named(name: str) -> str:
    """A name and a space; braces would be read as part of the template."""
    return f"{plain(name)} ".replace("{", "(").replace("}", ")") if name else ""
