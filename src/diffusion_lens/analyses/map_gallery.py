"""Maps over their image as markup: how results with maps show themselves in notebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from diffusion_lens.errors import FigureError
from diffusion_lens.showing.gallery import MOST, gallery
from diffusion_lens.showing.pictures import picture


def map_gallery(images: Sequence[Any] | None, maps: Mapping[str, Tensor], *, line: str) -> Any:
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
    kept = {
        name: (one.flatten(0, -3).mean(0) if one.ndim > 2 else one).float()
        for name, one in list(maps.items())[: MOST - 1]
    }
    low = min(float(one.min()) for one in kept.values())
    high = max(float(one.max()) for one in kept.values())
    try:
        plain = picture(first)
        shown = [
            viz.overlay_image(plain, one, grey=True, zmin=low, zmax=high) for one in kept.values()
        ]
    except FigureError:  # a look at a result never fails
        return gallery(images, line=line)
    return gallery([plain, *shown], captions=["image", *kept], line=line)
