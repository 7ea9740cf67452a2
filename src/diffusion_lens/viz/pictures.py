"""Images as plotly wants them: small files inside the figure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image
from plotly.colors import sample_colorscale

from diffusion_lens.showing.pictures import png_address
from diffusion_lens.viz.style import SEQUENTIAL, opacity

MOST_PIXELS = 512
FEWEST_PIXELS = 192


def source(image: Image.Image) -> str:
    """The image as a data address; big ones are made smaller, tiny ones keep their pixels."""
    longest = max(image.size)
    if longest > MOST_PIXELS:
        image = image.copy()
        image.thumbnail((MOST_PIXELS, MOST_PIXELS))
    elif longest < FEWEST_PIXELS:
        times = -(-FEWEST_PIXELS // longest)
        size = (image.width * times, image.height * times)
        image = image.resize(size, Image.Resampling.NEAREST)
    return png_address(image)


def coloured(values: np.ndarray, ends: Sequence[float]) -> Image.Image:
    """A map as an image, in the sequential colours; absent values are grey."""
    pixels = _colours(_share(values, ends))
    pixels[~np.isfinite(values)] = 217
    return Image.fromarray(pixels)


def laid_over(
    image: Image.Image,
    values: np.ndarray,
    ends: Sequence[float],
    *,
    resampling: Image.Resampling,
    most: float,
) -> Image.Image:
    """An image with a map over it, which hides as much of it as its values are high.

    Args:
        image: The image.
        values: The map, of any resolution; absent values hide nothing.
        ends: Of the colour scale.
        resampling: How the map is enlarged: its values are, not their colours.
        most: Opacity at the high end.
    """
    share = _resized(_share(values, ends), image.size, resampling).clip(0, 1)
    known = _resized(np.isfinite(values), image.size, resampling).clip(0, 1)
    hides = Image.fromarray((opacity(share) * known * most * 255).round().astype(np.uint8))
    return Image.composite(Image.fromarray(_colours(share)), image, hides)


def faded(image: Image.Image) -> Image.Image:
    """The image in light greys, so that all colour over it is the map's."""
    return image.convert("L").point([150 + grey * 105 // 255 for grey in range(256)]).convert("RGB")


def _resized(values: np.ndarray, size: tuple[int, int], resampling: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize(size, resampling))


def _colours(share: np.ndarray) -> np.ndarray:
    """The sequential colours, in bytes, of shares of their scale."""
    colours = np.array(sample_colorscale(SEQUENTIAL, 256, colortype="tuple"))
    return (colours[(share * 255).round().astype(int)] * 255).round().astype(np.uint8)


def _share(values: np.ndarray, ends: Sequence[float]) -> np.ndarray:
    low, high = ends
    return np.nan_to_num((values - low) / (high - low)).clip(0, 1)
