"""Maps over their image as markup: how results with maps show themselves in notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from diffusion_lens.errors import FigureError
from diffusion_lens.showing.gallery import MOST, gallery
from diffusion_lens.showing.pictures import picture


def map_gallery(
    images: Sequence[Any] | None, maps: Sequence[tuple[str, Tensor]], *, line: str
) -> Any:
    """The first sample's image, and its maps over it on one scale; only the images of a video.

    Args:
        images: The images of all samples.
        maps: Of the first sample, by what they are of; the last two axes are height and width, and
            the mean over the others is shown.
        line: Above them.

    Returns:
        Markup, or None without images.
    """
    from diffusion_lens import viz

    first = images[0] if images else None
    if first is None or isinstance(first, list | tuple):
        return gallery(images, line=line)
    names, kept = zip(*maps[: MOST - 1], strict=True)
    flat = [one.float().reshape(-1, *one.shape[-2:]).mean(0) for one in kept]
    low, high = min(float(one.min()) for one in flat), max(float(one.max()) for one in flat)
    try:
        plain = picture(first)
        shown = [viz.overlay_image(plain, one, grey=True, zmin=low, zmax=high) for one in flat]
    except FigureError:  # a look at a result never fails
        return gallery(images, line=line)
    return gallery([plain, *shown], captions=["image", *names], line=line)
