"""Images beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from diffusion_lens.errors import FigureError
from diffusion_lens.viz.panels import backdrop, finish_panels, frame_panel, panels, place
from diffusion_lens.viz.pictures import pictures, source
from diffusion_lens.viz.values import labels


def image_strip(
    images: Any,
    *,
    captions: Sequence[Any] | None = None,
    rows: int | None = None,
    title: str | None = None,
) -> go.Figure:
    """A grid of images, filled row by row.

    Args:
        images: PIL images, or arrays with axes height, width, 3.
        captions: Above each image.
        rows: Number of rows; by default as many as rows of six need.
        title: Above the figure.

    Raises:
        FigureError: If there are no images, or not as many captions.
    """
    drawn = pictures(images)
    shown = None if captions is None else labels(captions, len(drawn), name="captions")
    if rows is not None and not 0 < rows <= len(drawn):
        raise FigureError(f"rows={rows} for {len(drawn)} images; give 1 to {len(drawn)}")
    figure = panels(
        len(drawn), titles=shown, columns=None if rows is None else -(-len(drawn) // rows)
    )
    for panel, image in enumerate(drawn):
        row, column = place(figure, panel)
        # An empty trace: without one plotly draws neither axes nor their images.
        figure.add_trace(go.Scatter(x=[], y=[], showlegend=False), row=row, col=column)
        frame_panel(figure, panel, image.size)
    figure.update_layout(
        images=[backdrop(panel, source(one), one.size) for panel, one in enumerate(drawn)]
    )
    return finish_panels(figure, len(drawn), drawn[0], title=title)
