"""Images beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from diffusion_lens.border import Count, public
from diffusion_lens.errors import FigureError
from diffusion_lens.showing.one_line import counted
from diffusion_lens.showing.pictures import pictures
from diffusion_lens.viz.panels import Panels, backdrop, nothing
from diffusion_lens.viz.pictures import source
from diffusion_lens.viz.values import labels


@public
def image_strip(
    images: Any,
    *,
    captions: Sequence[Any] | None = None,
    rows: Count | None = None,
    title: str | None = None,
    note: str = "",
) -> go.Figure:
    """A grid of images, filled row by row.

    Args:
        images: PIL images, or arrays with axes height, width, 3.
        captions: Above each image.
        rows: Number of rows; by default as many as rows of six need.
        title: Above the figure.
        note: A sentence that says what is shown; below the title.

    Raises:
        FigureError: If there are no images, or not as many captions.
    """
    shown = pictures(images)
    texts = None if captions is None else labels(captions, len(shown), name="captions")
    if rows is not None and not 0 < rows <= len(shown):
        raise FigureError(f"rows={rows} for {counted(len(shown), 'image')}; give 1 to {len(shown)}")
    drawn = Panels.empty(
        len(shown), titles=texts, across=None if rows is None else -(-len(shown) // rows)
    )
    for panel, image in enumerate(shown):
        drawn.add(panel, nothing(), image.size)
    drawn.figure.update_layout(
        images=[backdrop(panel, source(one), one.size) for panel, one in enumerate(shown)]
    )
    return drawn.finish(shown[0], title=title, note=note)
