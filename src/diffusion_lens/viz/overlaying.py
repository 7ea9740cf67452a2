"""Maps laid over images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from PIL import Image

from diffusion_lens.border import Fraction, Number, public
from diffusion_lens.border.pictures import pictures
from diffusion_lens.errors import FigureError, refuse_unknown
from diffusion_lens.viz.panels import Panels, backdrop
from diffusion_lens.viz.pictures import source
from diffusion_lens.viz.style import colour_axis
from diffusion_lens.viz.values import array, labels, limits

SMOOTHING = {"nearest": False, "bilinear": "best"}


@public
def overlays(
    images: Any,
    maps: Any,
    *,
    titles: Sequence[Any] | None = None,
    steps: Sequence[Any] | None = None,
    upsample: str = "nearest",
    alpha: Fraction = 0.6,
    zmin: Number | None = None,
    zmax: Number | None = None,
    images_over: str | None = None,
    title: str | None = None,
) -> go.Figure:
    """Maps over images, a panel for each map, with a slider over steps or frames.

    All panels and steps share one colour scale, so that colours can be compared.

    Args:
        images: One image for all panels, or one for each panel, or one for each step.
        maps: Numbers with axes panel, height, width, or step, panel, height, width. Their
            resolution may be lower than the image's. NaN is absent: the image shows.
        titles: Above each panel.
        steps: Labels of the slider; by default counted from 0.
        upsample: `"nearest"` shows the cells that were measured, `"bilinear"` smooths them.
        alpha: Opacity of the maps, in [0, 1].
        zmin: Low end of the colour scale; by default the smallest value.
        zmax: High end of the colour scale; by default the largest value.
        images_over: `"panel"` or `"step"`: what several images belong to, where both have as many.
        title: Above the figure.

    Raises:
        FigureError: If images, maps and labels do not fit together.
    """
    refuse_unknown("upsample", upsample, SMOOTHING, error=FigureError)
    slides, values = _slides(maps, steps)
    count, panel_count = values.shape[:2]
    shown = None if titles is None else labels(titles, panel_count, name="titles")
    backdrops = _backdrops(pictures(images), count if slides else 1, panel_count, images_over)
    first = backdrops[-1]
    drawn = Panels.empty(panel_count, titles=shown)
    for panel in range(panel_count):
        size = first[panel].size
        drawn.add(panel, _heat(values[-1, panel], size, alpha=alpha, upsample=upsample), size)
    drawn.figure.update_layout(
        images=_layout_images(first), coloraxis=colour_axis(limits(values, zmin, zmax), "")
    )
    if slides:
        drawn.figure.frames = _frames(values, backdrops)
        drawn.slide(slides, "step ", start=count - 1)
    return drawn.finish(first[0], title=title)


def _frames(values: np.ndarray, backdrops: list[list[Image.Image]]) -> list[go.Frame]:
    """What changes from step to step: values, and images where there is one for each step."""
    moving = backdrops[0][0] is not backdrops[-1][0]
    return [
        go.Frame(
            name=str(number),
            data=[{"type": "heatmap", "z": one} for one in row],
            traces=list(range(len(row))),
            layout={"images": _layout_images(backdrops[number])} if moving else None,
        )
        for number, row in enumerate(values)
    ]


def _slides(maps: Any, steps: Sequence[Any] | None) -> tuple[list[str] | None, np.ndarray]:
    """Labels of the slider, or None without one; maps with a step axis."""
    four = getattr(maps, "ndim", None) or np.ndim(maps)
    if four == 4:
        values = array(maps, axes="step panel height width", name="maps")
        counted = range(len(values)) if steps is None else steps
        return labels(counted, len(values), name="steps"), values
    if steps is not None:
        raise FigureError("steps= needs maps with axes step, panel, height, width")
    return None, array(maps, axes="panel height width", name="maps")[None]


def _backdrops(
    given: list[Image.Image], steps: int, count: int, over: str | None
) -> list[list[Image.Image]]:
    """The image of each panel at each step."""
    if over not in (None, "panel", "step"):
        raise FigureError(f"images_over={over!r} is neither 'panel' nor 'step'")
    if len(given) == 1:
        return [given * count] * steps
    if over is None and len(given) == steps == count:
        raise FigureError(
            f"{len(given)} images fit {count} panels and {steps} steps; say which by "
            "images_over='panel' or images_over='step'"
        )
    if over != "step" and len(given) == count:
        return [given] * steps
    if over != "panel" and len(given) == steps:
        return [[one] * count for one in given]
    raise FigureError(
        f"{len(given)} images for {count} panels and {steps} steps; give one, one for each panel "
        "or one for each step"
    )


def _layout_images(row: list[Image.Image]) -> list[dict[str, Any]]:
    addresses = {id(image): source(image) for image in row}
    return [backdrop(panel, addresses[id(one)], one.size) for panel, one in enumerate(row)]


def _heat(values: np.ndarray, size: tuple[int, int], *, alpha: float, upsample: str) -> go.Heatmap:
    """A map stretched over an image of this size."""
    height, width = values.shape
    dx, dy = size[0] / width, size[1] / height
    return go.Heatmap(
        z=values,
        x0=dx / 2,
        dx=dx,
        y0=dy / 2,
        dy=dy,
        coloraxis="coloraxis",
        opacity=alpha,
        zsmooth=SMOOTHING[upsample],
        hoverongaps=False,
        hovertemplate="%{z:.4g}<extra></extra>",
    )
