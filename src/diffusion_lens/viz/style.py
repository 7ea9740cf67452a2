"""How every figure looks: colours that the colour-blind tell apart, margins, fonts, axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from diffusion_lens.viz.values import plain

SEQUENTIAL = "Viridis"
DIVERGING = "RdBu_r"
ABSENT = "#d9d9d9"
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette."""
DASHES = ("solid", "dash", "dot", "dashdot")
MOST_TICKS = 40


def finish(figure: go.Figure, *, title: str | None = None, **layout: Any) -> go.Figure:
    """Give a figure the common look."""
    figure.update_layout(
        template="plotly_white",
        font={"size": 12},
        title=None if title is None else {"text": plain(title), "x": 0.02, "font": {"size": 15}},
        margin={"l": 60, "r": 20, "t": 30 if title is None else 60, "b": 50},
    )
    return figure.update_layout(**layout)


def ticks(shown: Sequence[str], title: str = "") -> dict[str, Any]:
    """An axis that counts places and shows a label at each, or at every n-th of many.

    Places are counted because plotly merges equal labels and reads some texts as numbers or dates.
    """
    places = range(0, len(shown), -(-len(shown) // MOST_TICKS) or 1)
    return {
        "tickmode": "array",
        "tickvals": list(places),
        "ticktext": [shown[place] for place in places],
        "title": {"text": plain(title)},
        "showgrid": False,
        "zeroline": False,
    }


def colour_axis(ends: Sequence[float], name: str, *, zero_centred: bool = False) -> dict[str, Any]:
    """A colour scale between two ends, or symmetric around zero."""
    low, high = ends
    if zero_centred:
        high = max(abs(low), abs(high))
        low = -high
    return {
        "colorscale": DIVERGING if zero_centred else SEQUENTIAL,
        "cmin": low,
        "cmax": high,
        "colorbar": {"title": {"text": plain(name)}, "thickness": 14},
    }
