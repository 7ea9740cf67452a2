"""Images as PIL has them, and as addresses that a page holds."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffusion_lens.errors import FigureError


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
    values = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
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
    if isinstance(given, np.ndarray | Tensor):
        return [picture(one) for one in given] if given.ndim == 4 else [picture(given)]
    if not isinstance(given, Sequence) or not given:
        raise FigureError(f"no image is given, but {type(given).__name__} {given!r:.60}")
    return [picture(one) for one in given]


def of_pipeline(given: Any) -> list[list[Image.Image]]:
    """What a pipeline made, as PIL images: for each sample its image, or the frames of its video.

    Args:
        given: Images or videos as `output_type` says: PIL images in lists; arrays with axes sample,
            (frame), height, width, channel; tensors with axes sample, (frame), channel, height,
            width.

    Raises:
        FigureError: If these are no images.
    """
    if isinstance(given, Tensor):
        given = given.detach().to("cpu", torch.float32).movedim(-3, -1).numpy()
    if isinstance(given, np.ndarray):
        given = list(given)
    if isinstance(given, Image.Image):
        given = [given]
    return [pictures(_last_channels(one)) for one in given]


def _last_channels(sample: Any) -> Any:
    """A list may hold tensors, whose channels come first."""
    if isinstance(sample, Tensor):
        return sample.detach().to("cpu", torch.float32).movedim(-3, -1).numpy()
    return sample


def png_address(image: Image.Image) -> str:
    """The image as a data address, every pixel kept."""
    return _address(image, "PNG", optimize=True)


def jpeg_address(image: Image.Image) -> str:
    """The image as a data address of a few kilobytes."""
    return _address(image, "JPEG", quality=90)


def _address(image: Image.Image, form: str, **settings: Any) -> str:
    written = io.BytesIO()
    image.save(written, form, **settings)
    data = base64.b64encode(written.getvalue()).decode("ascii")
    return f"data:image/{form.lower()};base64,{data}"
