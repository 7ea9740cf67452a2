"""Maps laid over images."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from PIL import Image

from diffusion_lens.border import Fraction, Number, public
from diffusion_lens.errors import FigureError, refuse_unknown
from diffusion_lens.showing.pictures import pictures
from diffusion_lens.viz.panels import MOST_IN_A_ROW, Panels, backdrop, nothing
from diffusion_lens.viz.pictures import faded, source
from diffusion_lens.viz.style import colour_axis
from diffusion_lens.viz.values import array, labels, limits

SMOOTHING = {"nearest": False, "bilinear": "best"}
IMAGE = "image"
"""What stands above the plain image."""


class Place(NamedTuple):
    """What a panel shows.

    Attributes:
        map: Which map; None for the plain image.
        image: The map whose image it is.
    """

    map: int | None
    image: int


@public
def overlays(
    images: Any,
    maps: Any,
    *,
    titles: Sequence[Any] | None = None,
    steps: Sequence[Any] | None = None,
    step_name: str = "step",
    upsample: str = "nearest",
    alpha: Fraction = 0.85,
    zmin: Number | None = None,
    zmax: Number | None = None,
    images_over: str | None = None,
    plain: bool = True,
    title: str | None = None,
    note: str = "",
    value_name: str = "",
) -> go.Figure:
    """Maps over images, a panel for each map, with a slider over steps or frames.

    All panels and steps share one colour scale, so that colours can be compared. Where a map is low
    the image is seen, in greys; before its maps each image stands as it is. The slider opens at its
    middle, since first steps are noise, and the note says so.

    Args:
        images: One image for all panels, or one for each panel, or one for each step.
        maps: Numbers with axes panel, height, width, or step, panel, height, width. Their
            resolution may be lower than the image's. NaN is absent: the image shows.
        titles: Above each panel.
        steps: Labels of the slider; by default counted from 0.
        step_name: What the slider counts.
        upsample: `"nearest"` shows the cells that were measured, `"bilinear"` smooths them.
        alpha: Opacity of the maps where they are highest, in [0, 1].
        zmin: Low end of the colour scale; by default the smallest value.
        zmax: High end of the colour scale; by default the largest value.
        images_over: `"panel"` or `"step"`: what several images belong to, where both have as many.
        plain: Whether each image is shown as it is, too.
        title: Above the figure.
        note: A sentence that says what the numbers mean; below the title.
        value_name: What the numbers are, with their unit; at the colour scale.

    Raises:
        FigureError: If images, maps and labels do not fit together.
    """
    refuse_unknown("upsample", upsample, SMOOTHING, error=FigureError)
    slides, values = _slides(maps, steps)
    count, panel_count = values.shape[:2]
    shown = None if titles is None else labels(titles, panel_count, name="titles")
    backdrops = _backdrops(pictures(images), count if slides else 1, panel_count, images_over)
    start = count // 2
    first = backdrops[start if slides else 0]
    places, across = _arranged(first, plain=plain)
    named = shown and [IMAGE if one.map is None else shown[one.map] for one in places]
    drawn = Panels.empty(len(places), titles=named, across=across)
    heats = [(at, one.map) for at, one in enumerate(places) if one.map is not None]
    for at, number in heats:  # before the plain images: frames count the maps from 0
        size = first[number].size
        drawn.add(at, _heat(values[start, number], size, alpha=alpha, upsample=upsample), size)
    for at, one in enumerate(places):
        if one.map is None:
            drawn.add(at, nothing(), first[one.image].size)
    drawn.figure.update_layout(
        images=_layout_images(first, places),
        coloraxis=colour_axis(limits(values, zmin, zmax), value_name, over_image=True),
    )
    if slides:
        drawn.figure.frames = _frames(values, backdrops, places)
        drawn.slide(slides, f"{step_name} " if step_name else "", start=start)
        if count > 1:
            opened = f"Opens at {step_name} {slides[start]}, the middle one.".split()
            note = " ".join([note, *opened]).strip()
    return drawn.finish(first[0], title=title, note=note)


def _arranged(images: Sequence[Image.Image], *, plain: bool) -> tuple[list[Place], int | None]:
    """Panels in their order, and how many stand in a row (None for as many as fit).

    Each image stands before the first of its maps. Where several images have as many maps each, a
    row begins with an image.
    """
    places: list[Place] = []
    seen: list[Image.Image] = []
    for number, image in enumerate(images):
        if plain and not any(image is one or image == one for one in seen):
            seen.append(image)
            places.append(Place(None, number))
        places.append(Place(number, number))
    starts = [at for at, one in enumerate(places) if one.map is None]
    lengths = {end - at for at, end in pairwise([*starts, len(places)])}
    if len(starts) < 2 or len(lengths) > 1 or max(lengths) > MOST_IN_A_ROW:
        return places, None
    (length,) = lengths
    return places, min(MOST_IN_A_ROW // length * length, len(places))


def _frames(
    values: np.ndarray, backdrops: list[list[Image.Image]], places: Sequence[Place]
) -> list[go.Frame]:
    """What changes from step to step: values, and images where there is one for each step."""
    moving = backdrops[0][0] is not backdrops[-1][0]
    return [
        go.Frame(
            name=str(number),
            data=[{"type": "heatmap", "z": one} for one in row],
            traces=list(range(len(row))),
            layout={"images": _layout_images(backdrops[number], places)} if moving else None,
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


def _layout_images(row: list[Image.Image], places: Sequence[Place]) -> list[dict[str, Any]]:
    addresses: dict[tuple[int, bool], str] = {}
    found = []
    for at, one in enumerate(places):
        image, grey = row[one.image], one.map is not None
        key = (id(image), grey)
        if key not in addresses:
            addresses[key] = source(faded(image) if grey else image)
        found.append(backdrop(at, addresses[key], image.size))
    return found


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
