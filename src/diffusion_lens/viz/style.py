"""How every figure looks: colours that the colour-blind tell apart, heading, margins, axes."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from diffusion_lens.viz.values import plain

SEQUENTIAL = "Viridis"
DIVERGING = "RdBu_r"
ABSENT = "#d9d9d9"
FAINT = "#5c6670"
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette."""
DASHES = ("solid", "dash", "dot", "dashdot")
MOST_ROWS, MOST_COLUMNS = 40, 20
"""Labels along an axis; those of columns must fit a telephone."""
LINE = 60
"""Characters of a line of the heading: they fit a telephone, and plotly does not break lines."""
BUTTONS, EACH_LINE, BELOW = 34, 19, 12
"""Pixels of the heading: plotly's buttons above it, its lines, what is free below."""
OPAQUE = 0.8
"""Share of a colour scale from which a map over an image hides it."""
UNUSED_BUTTONS = ("select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d")


def finish(
    figure: go.Figure,
    *,
    height: int,
    title: str | None = None,
    note: str = "",
    margin: Mapping[str, int] | None = None,
    **layout: Any,
) -> go.Figure:
    """Give a figure the common look.

    Args:
        figure: The figure.
        height: In pixels, without the heading.
        title: What it shows.
        note: A sentence that says what its numbers mean; below the title.
        margin: In pixels; the heading comes on top of it.
        **layout: The rest of plotly's layout.
    """
    text, tall = heading(title, note)
    if text is not None:
        text["y"] = 1 - BUTTONS / (height + tall)
    sides = {"l": 60, "r": 20, "t": 30 if text is None else 4, "b": 50, **(margin or {})}
    sides["t"] += tall
    figure.update_layout(
        template="plotly_white",
        font={"size": 12},
        title=text,
        margin=sides,
        height=height + tall,
        modebar={"remove": list(UNUSED_BUTTONS)},
    )
    return figure.update_layout(**layout)


def heading(title: str | None, note: str) -> tuple[dict[str, Any] | None, int]:
    """Title and note as plotly takes them, and how many pixels they need; None without either."""
    lines = textwrap.wrap(note, LINE)
    first = textwrap.wrap(title or "", LINE)
    if not first and not lines:
        return None, 0
    said = [plain(line) for line in first]
    if lines:
        under = "<br>".join(map(plain, lines))
        said.append(f'<span style="font-size:12px;color:{FAINT}">{under}</span>')
    shown = {
        "text": "<br>".join(said),
        "font": {"size": 15},
        "x": 0.02,
        "xanchor": "left",
        "yref": "container",
        "yanchor": "top",
    }
    count = len(first) + len(lines)
    return shown, BUTTONS + EACH_LINE * count + BELOW


def ticks(shown: Sequence[str], title: str = "", *, most: int = MOST_COLUMNS) -> dict[str, Any]:
    """An axis that counts places and shows a label at each, or at every n-th of many.

    Places are counted because plotly merges equal labels and reads some texts as numbers or dates.
    """
    places = range(0, len(shown), -(-len(shown) // most) or 1)
    return {
        "tickmode": "array",
        "tickvals": list(places),
        "ticktext": [shown[place] for place in places],
        "title": {"text": plain(title)},
        "showgrid": False,
        "zeroline": False,
    }


def colour_axis(
    ends: Sequence[float],
    name: str,
    *,
    zero_centred: bool = False,
    over_image: bool = False,
    marks: Mapping[float, str] | None = None,
) -> dict[str, Any]:
    """A colour scale between two ends, or symmetric around zero.

    Args:
        ends: The ends.
        name: What the numbers are, with their unit; along the scale.
        zero_centred: Whether zero is white.
        over_image: Whether low values let an image be seen.
        marks: What some values mean; said at the scale, which reaches up to twice its length for
            them.
    """
    low, high = ends
    high = max([high, *(mark for mark in marks or () if high < mark <= 2 * high)])
    if zero_centred:
        high = max(abs(low), abs(high))
        low = -high
    sequential = transparent_when_low() if over_image else SEQUENTIAL
    bar: dict[str, Any] = {"title": {"text": plain(name), "side": "right"}, "thickness": 14}
    within = {value: said for value, said in (marks or {}).items() if low <= value <= high}
    if within:
        bar |= _marked(low, high, within)
    return {
        "colorscale": DIVERGING if zero_centred else sequential,
        "cmin": low,
        "cmax": high,
        "colorbar": bar,
    }


def transparent_when_low() -> list[tuple[float, str]]:
    """The sequential colours, clear at the low end."""
    shares = [number / 32 for number in range(33)]
    colours: Any = sample_colorscale(SEQUENTIAL, shares, colortype="tuple")
    return [
        (share, f"rgba({','.join(str(round(255 * part)) for part in colour)},{opacity(share):.3f})")
        for share, colour in zip(shares, colours, strict=True)
    ]


def opacity(share: Any) -> Any:
    """How much a map hides the image, in [0, 1], at a share of its colour scale."""
    return np.clip(share / OPAQUE, 0, 1) ** 1.5


def _marked(low: float, high: float, marks: Mapping[float, str]) -> dict[str, Any]:
    """Ticks at the ends and in between, with what is said at some of them."""
    places = {low: f"{low:.2g}", high: f"{high:.2g}", (low + high) / 2: f"{(low + high) / 2:.2g}"}
    near = 0.08 * (high - low)
    kept = {
        place: text
        for place, text in places.items()
        if all(abs(place - mark) > near for mark in marks)
    }
    said = {mark: f"{mark:g} {plain(text)}" for mark, text in marks.items()}
    shown = dict(sorted({**kept, **said}.items()))
    return {"tickmode": "array", "tickvals": list(shown), "ticktext": list(shown.values())}
