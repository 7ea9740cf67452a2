"""Curves and bars with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from diffusion_lens.border import public
from diffusion_lens.errors import FigureError, closest
from diffusion_lens.viz.style import DASHES, LINES, finish, ticks
from diffusion_lens.viz.values import array, plain


@public
def curves(
    x: Any,
    curves: Mapping[str, Any],
    *,
    intervals: Mapping[str, tuple[Any, Any]] | None = None,
    x_title: str = "",
    y_title: str = "",
    title: str | None = None,
    note: str = "",
) -> go.Figure:
    """Lines over a common axis, with bands for their intervals.

    Args:
        x: Places along the axis.
        curves: For each name its values; NaN leaves a gap.
        intervals: For some or all names the lower and the upper values.
        x_title: What the places are.
        y_title: What the values are.
        title: Above the figure.
        note: A sentence that says what the values mean; below the title.

    Raises:
        FigureError: If lengths differ, or an interval belongs to no curve.
    """
    places = array(x, axes="place", name="x")
    bands = intervals or {}
    _refuse_strangers(bands, curves)
    figure = go.Figure()
    for number, (name, values) in enumerate(curves.items()):
        colour, dash = LINES[number % len(LINES)], DASHES[number % len(DASHES)]
        if name in bands:
            low, high = (_along(end, places, f"intervals[{name!r}]") for end in bands[name])
            figure.add_traces(_band(places, low, high, colour, group=str(number)))
        line = go.Scatter(
            x=places,
            y=_along(values, places, f"curves[{name!r}]"),
            name=plain(name),
            mode="lines+markers",
            line={"color": colour, "dash": dash},
            legendgroup=str(number),
        )
        figure.add_trace(line)
    return finish(
        figure,
        title=title,
        note=note,
        xaxis={"title": {"text": plain(x_title)}},
        yaxis={"title": {"text": plain(y_title)}},
        height=380,
        showlegend=len(curves) > 1,
        legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0},
    )


@public
def bars(
    values: Mapping[str, float],
    *,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    x_title: str = "",
    y_title: str = "",
    title: str | None = None,
    note: str = "",
) -> go.Figure:
    """A bar for each name, with whiskers for intervals.

    Args:
        values: A number for each name.
        intervals: For some or all names the lower and the upper end.
        x_title: What the names are.
        y_title: What the numbers are.
        title: Above the figure.
        note: A sentence that says what the numbers mean; below the title.

    Raises:
        FigureError: If there are none, or an interval belongs to no bar.
    """
    heights = array(list(values.values()), axes="bar")
    whiskers = intervals or {}
    _refuse_strangers(whiskers, values)
    names = [plain(name) for name in values]
    ends = np.array([whiskers.get(name, (np.nan, np.nan)) for name in values], dtype=np.float32)
    said = ["" if np.isnan([low, high]).any() else f" ({low:.4g} to {high:.4g})"
            for low, high in ends]  # fmt: skip
    bar = go.Bar(
        x=list(range(len(names))),
        y=heights,
        customdata=np.array([names, said], dtype=object).T,
        marker={"color": LINES[0]},
        hovertemplate="%{customdata[0]}<br>%{y:.4g}<extra></extra>",
    )
    if whiskers:
        bar.update(
            error_y={
                "type": "data",
                "symmetric": False,
                "array": ends[:, 1] - heights,  # nan draws nothing, 0 a whisker of no length
                "arrayminus": heights - ends[:, 0],
            },
            hovertemplate="%{customdata[0]}<br>%{y:.4g}%{customdata[1]}<extra></extra>",
        )
    return finish(
        go.Figure(bar),
        title=title,
        note=note,
        xaxis=ticks(names, x_title),
        yaxis={"title": {"text": plain(y_title)}},
        height=380,
    )


def _band(
    x: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str, *, group: str
) -> list[go.Scatter]:
    """Two invisible lines and what lies between them."""
    common: dict[str, Any] = {
        "x": x,
        "mode": "lines",
        "line": {"width": 0, "color": colour},
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": group,
    }
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    filled = {"fill": "tonexty", "fillcolor": f"rgba({red},{green},{blue},0.18)"}
    return [go.Scatter(y=low, **common), go.Scatter(y=high, **common, **filled)]


def _along(values: Any, x: np.ndarray, name: str) -> np.ndarray:
    found = array(values, axes="place", name=name)
    if found.shape != x.shape:
        raise FigureError(f"{name} has {len(found)} values for {len(x)} places of x")
    return found


def _refuse_strangers(intervals: Mapping[str, Any], known: Sequence[str] | Mapping) -> None:
    for name in intervals:
        if name not in known:
            near = closest(str(name), [str(one) for one in known])
            hint = f" Closest: {near[0]!r}." if near else ""
            raise FigureError(f"an interval for {name!r}, which has no values.{hint}")
