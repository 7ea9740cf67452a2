"""Images as plotly wants them: small files inside the figure."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from plotly.colors import sample_colorscale

from diffusion_lens.errors import FigureError
from diffusion_lens.viz.style import SEQUENTIAL

MOST_PIXELS = 512
FEWEST_PIXELS = 192


def picture(given: Any) -> Image.Image:
    """A PIL image of an image.

    Args:
        given: A PIL image, or an array or tensor with axes height, width, 3 (or height, width):
            bytes, or numbers in [0, 1].

    Raises:
        FigureError: If it is none of these.
    """
    if isinstance(given, Image.Image):
        return given.convert("RGB")
    values = given.detach().cpu().numpy() if isinstance(given, torch.Tensor) else np.asarray(given)
    if not (values.ndim == 2 or (values.ndim == 3 and values.shape[-1] == 3)) or not values.size:
        raise FigureError(
            "an image is a PIL image or an array with axes height, width, 3; "
            f"this is a {type(given).__name__} of shape {values.shape}"
        )
    if values.dtype != np.uint8:
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise FigureError(
                "an image of numbers that are no bytes must lie in [0, 1]; this one has values "
                f"from {values.min():.3g} to {values.max():.3g}"
            )
        values = (values * 255).round().astype(np.uint8)
    return Image.fromarray(values).convert("RGB")


def pictures(given: Any) -> list[Image.Image]:
    """PIL images of one image or several (a list, or an array with one axis more)."""
    if isinstance(given, Image.Image):
        return [picture(given)]
    if isinstance(given, np.ndarray | torch.Tensor):
        return [picture(one) for one in given] if given.ndim == 4 else [picture(given)]
    if not isinstance(given, Sequence) or not given:
        raise FigureError(f"no image is given, but {type(given).__name__} {given!r:.60}")
    return [picture(one) for one in given]


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
    written = io.BytesIO()
    image.save(written, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode("ascii")


def coloured(values: np.ndarray, ends: Sequence[float]) -> Image.Image:
    """A map as an image, in the sequential colours; absent values are grey."""
    colours = np.array(sample_colorscale(SEQUENTIAL, 256, colortype="tuple"))
    low, high = ends
    share = np.nan_to_num((values - low) / (high - low)).clip(0, 1)
    pixels = (colours[(share * 255).round().astype(int)] * 255).round().astype(np.uint8)
    pixels[~np.isfinite(values)] = 217
    return Image.fromarray(pixels)
