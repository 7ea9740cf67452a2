"""One map laid over one image, as a picture."""

from __future__ import annotations

from typing import Any

from PIL import Image

from diffusion_lens.border import Fraction, Number, public
from diffusion_lens.errors import FigureError, refuse_unknown
from diffusion_lens.showing.pictures import picture
from diffusion_lens.viz.pictures import faded, laid_over
from diffusion_lens.viz.values import array, limits

RESAMPLING = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR}


@public
def overlay_image(
    image: Any,
    values: Any,
    *,
    upsample: str = "nearest",
    alpha: Fraction = 0.85,
    zmin: Number | None = None,
    zmax: Number | None = None,
    grey: bool = False,
) -> Image.Image:
    """A map over an image, without a browser or kaleido: a picture to save.

    Where the map is low the image is seen.

    Args:
        image: A PIL image, or an array with axes height, width, 3.
        values: Numbers with axes height, width; their resolution may be lower than the image's.
            NaN is absent: the image shows.
        upsample: `"nearest"` or `"bilinear"`.
        alpha: Opacity of the map where it is highest, in [0, 1].
        zmin: Low end of the colour scale; by default the smallest value.
        zmax: High end; by default the largest value.
        grey: Show the image in light greys, so that all colour is the map's.

    Raises:
        FigureError: If these are no image and no map, or `upsample` is unknown.
    """
    refuse_unknown("upsample", upsample, RESAMPLING, error=FigureError)
    below = faded(picture(image)) if grey else picture(image)
    found = array(values, axes="height width")
    ends = limits(found, zmin, zmax)
    return laid_over(below, found, ends, resampling=RESAMPLING[upsample], most=alpha)
