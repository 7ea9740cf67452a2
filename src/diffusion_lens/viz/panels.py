"""Images beside each other, each on axes of its own pixels, and a slider under them."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from PIL import Image
from plotly.subplots import make_subplots

from diffusion_lens.viz.style import BUTTONS, LINE, finish
from diffusion_lens.viz.values import plain

MOST_IN_A_ROW = 6
WIDTH = 800
HIGHEST, LOWEST = 420, 150
ABOVE, TITLE_LINE = 24, 15
"""Pixels above the first row, for a line of titles, and for each further line."""


@dataclass(frozen=True)
class Panels:
    """A figure of panels that are filled row by row.

    Attributes:
        figure: The figure.
        count: How many panels.
        across: How many in a row.
        lines: Of the longest title.
    """

    figure: go.Figure
    count: int
    across: int
    lines: int = 1

    @classmethod
    def empty(
        cls, count: int, *, titles: Sequence[str] | None = None, across: int | None = None
    ) -> Panels:
        """Panels with nothing in them; titles are drawn above each."""
        columns = across or min(count, MOST_IN_A_ROW)
        rows = -(-count // columns)
        broken = [_broken(title, LINE // columns) for title in titles or ()]
        figure = make_subplots(
            rows,
            columns,
            subplot_titles=broken or None,
            horizontal_spacing=0.12 / columns,
            vertical_spacing=min(0.12, 0.28 / rows),
        )
        figure.update_annotations(font={"size": 12})
        figure.update_xaxes(visible=False)
        figure.update_yaxes(visible=False)
        lines = max((one.count("<br>") + 1 for one in broken), default=1)
        return cls(figure, count, columns, lines)

    def add(self, panel: int, trace: Any, size: tuple[int, int]) -> None:
        """Draw a trace on axes that count an image's pixels from its upper left corner."""
        row, column = panel // self.across + 1, panel % self.across + 1
        width, height = size
        self.figure.add_trace(trace, row=row, col=column)
        self.figure.update_xaxes(range=[0, width], constrain="domain", row=row, col=column)
        self.figure.update_yaxes(
            range=[height, 0],
            constrain="domain",
            scaleanchor=_axis("x", panel),
            row=row,
            col=column,
        )

    def slide(self, shown: Sequence[str], name: str, *, start: int) -> None:
        """Put a slider over the figure's frames, which are named by their number from 0."""
        now = {"duration": 0, "redraw": True}
        move = {"mode": "immediate", "frame": now, "transition": {"duration": 0}}
        steps = [
            {"label": label, "method": "animate", "args": [[str(number)], move]}
            for number, label in enumerate(shown)
        ]
        slider = {"active": start, "steps": steps, "pad": {"t": 20}}
        self.figure.update_layout(sliders=[{**slider, "currentvalue": {"prefix": plain(name)}}])

    def finish(self, image: Image.Image, *, title: str | None, note: str = "") -> go.Figure:
        """Give the figure the common look and a height that suits its images."""
        side = min(HIGHEST, max(LOWEST, WIDTH // self.across))
        tall = round(min(2.0, image.height / image.width) * side)
        rows = -(-self.count // self.across)
        more = TITLE_LINE * (self.lines - 1)
        free = 0 if title or note else BUTTONS
        slider = 90 if self.figure.layout["sliders"] else 0
        if rows > 1:  # a scale as tall as many rows is far from most of them
            bar = {"lenmode": "pixels", "len": 260, "y": 1, "yanchor": "top"}
            self.figure.update_layout(coloraxis={"colorbar": bar})
        return finish(
            self.figure,
            title=title,
            note=note,
            margin={"l": 10, "r": 10, "t": ABOVE + more + free, "b": 10},
            height=rows * (tall + 34 + more) + ABOVE + free + slider,
        )


def backdrop(panel: int, address: str, size: tuple[int, int]) -> dict[str, Any]:
    """An image that fills a panel, below everything else in it."""
    return {
        "source": address,
        "xref": _axis("x", panel),
        "yref": _axis("y", panel),
        "x": 0,
        "y": 0,
        "sizex": size[0],
        "sizey": size[1],
        "sizing": "stretch",
        "layer": "below",
    }


def nothing() -> go.Scatter:
    """An empty trace: without one plotly draws neither the axes of a panel nor its image."""
    return go.Scatter(x=[], y=[], showlegend=False)


def _broken(title: str, width: int) -> str:
    """A title, which is safe to draw, on as many lines as a narrow panel needs."""
    seen = html.unescape(title)  # an entity is as wide as one character
    return "<br>".join(map(plain, textwrap.wrap(seen, max(12, width), break_long_words=False)))


def _axis(letter: str, panel: int) -> str:
    return letter if panel == 0 else f"{letter}{panel + 1}"
