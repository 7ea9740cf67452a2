"""Images beside each other, each on axes of its own pixels, and a slider under them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from PIL import Image
from plotly.subplots import make_subplots

from diffusion_lens.viz.style import finish

MOST_IN_A_ROW = 6
SIDE = 190


def panels(count: int, *, titles: Sequence[str] | None, columns: int | None = None) -> go.Figure:
    """Empty panels in rows; titles are drawn above each."""
    across = columns or min(count, MOST_IN_A_ROW)
    rows = -(-count // across)
    figure = make_subplots(
        rows,
        across,
        subplot_titles=list(titles) if titles else None,
        horizontal_spacing=0.12 / across,
        vertical_spacing=min(0.12, 0.28 / rows),
    )
    figure.update_annotations(font={"size": 12})
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return figure


def frame_panel(figure: go.Figure, panel: int, size: tuple[int, int]) -> None:
    """Make a panel's axes those of an image: pixels, counted from the upper left corner."""
    width, height = size
    row, column = place(figure, panel)
    figure.update_xaxes(range=[0, width], constrain="domain", row=row, col=column)
    figure.update_yaxes(
        range=[height, 0],
        constrain="domain",
        scaleanchor="x" if panel == 0 else f"x{panel + 1}",
        row=row,
        col=column,
    )


def place(figure: go.Figure, panel: int) -> tuple[int, int]:
    """Row and column of a panel, from 1."""
    across = len(figure._grid_ref[0])
    return panel // across + 1, panel % across + 1


def backdrop(panel: int, address: str, size: tuple[int, int]) -> dict[str, Any]:
    """An image that fills a panel, below everything else in it."""
    number = "" if panel == 0 else str(panel + 1)
    return {
        "source": address,
        "xref": f"x{number}",
        "yref": f"y{number}",
        "x": 0,
        "y": 0,
        "sizex": size[0],
        "sizey": size[1],
        "sizing": "stretch",
        "layer": "below",
    }


def finish_panels(figure: go.Figure, count: int, image: Image.Image, **layout: Any) -> go.Figure:
    """Give panels the common look and a height that suits their images."""
    across = len(figure._grid_ref[0])
    side = min(420, max(SIDE, 900 // across))
    tall = round(min(2.0, image.height / image.width) * side)
    slider = 90 if figure.layout.sliders else 0
    height = -(-count // across) * (tall + 34) + 70 + slider
    return finish(figure, **layout, height=height)


def add_slider(figure: go.Figure, shown: Sequence[str], name: str, *, start: int) -> None:
    """A slider over the figure's frames, named by their number from 0."""
    steps = [
        {
            "label": label,
            "method": "animate",
            "args": [
                [str(number)],
                {
                    "mode": "immediate",
                    "frame": {"duration": 0, "redraw": True},
                    "transition": {"duration": 0},
                },
            ],
        }
        for number, label in enumerate(shown)
    ]
    figure.update_layout(
        sliders=[
            {
                "active": start,
                "steps": steps,
                "currentvalue": {"prefix": name},
                "pad": {"t": 20},
            }
        ]
    )
