"""The size at which a model takes a given image: the image's own, as far as patches allow."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL.Image import Image, Resampling
from torch import Tensor

from diffusion_lens.errors import RunError
from diffusion_lens.hooked_diffusion.model import HookedDiffusion
from diffusion_lens.hooked_diffusion.packing import pixels_to_a_latent


def fitted(
    model: HookedDiffusion, image: Image, *, height: int | None = None, width: int | None = None
) -> Image:
    """An image at the size of `fitted_size`.

    Args:
        model: The model.
        image: The image.
        height: As for `fitted_size`.
        width: Likewise.

    Raises:
        RunError: As `fitted_size`.
    """
    if not isinstance(image, Image):
        raise RunError(f"one PIL image is needed, got a {type(image).__name__}")
    size = fitted_size(model, image, height=height, width=width)
    if size == size_of(image):
        return image
    return image.resize((size[1], size[0]), Resampling.LANCZOS)


def fitted_size(
    model: HookedDiffusion,
    image: Any,
    *,
    height: int | None = None,
    width: int | None = None,
    error: type[Exception] = RunError,
) -> tuple[int, int]:
    """Height and width in pixels at which a model takes an image.

    Sides that the model's patches and levels don't tile are rounded down to ones that they do. That
    is said in a warning, and so is a size above the one that the model was made for. What suits a
    toy model's own images does not count: like any other, it takes an image at the image's size.

    Args:
        model: The model, with its pipeline.
        image: One image (PIL, array with axes height, width, channel, or tensor with axes channel,
            height, width), several of one size, or the frames of a video.
        height: Resize to this height in pixels; the width follows unless it is given.
        width: Likewise.
        error: What to raise.

    Raises:
        RunError: If the model has no pipeline, images differ in size, or one is too small.
    """
    if model.pipe is None:
        raise error("a bare denoiser encodes no image=; wrap the pipeline that it belongs to")
    given, unit = size_of(image, error=error), side_unit(model)
    wanted = _with_aspect(given, height, width)
    size = (wanted[0] // unit * unit, wanted[1] // unit * unit)
    if 0 in size:
        raise error(
            f"an image of {wanted[0]} x {wanted[1]} pixels is too small for {model.name}, whose "
            f"sides are multiples of {unit}; give height= and width="
        )
    if size != wanted:
        warnings.warn(
            f"the image is resized from {given[0]} x {given[1]} to {size[0]} x {size[1]} pixels "
            f"(height x width): sides must be multiples of {unit}",
            stacklevel=5,
        )
    native = native_size(model)
    if native is not None and size[0] * size[1] > native[0] * native[1]:
        warnings.warn(
            f"the image has {size[0]} x {size[1]} pixels, {model.name} was made for {native[0]} x "
            f"{native[1]} (height x width): above its own size a model is slow and less to be "
            "trusted; give height= and width=",
            stacklevel=5,
        )
    return size


def size_of(image: Any, *, error: type[Exception] = RunError) -> tuple[int, int]:
    """Height and width in pixels of one image or of several.

    Args:
        image: As for `fitted_size`.
        error: What to raise.

    Raises:
        RunError: If it is no image, or images differ in size.
    """
    if isinstance(image, Image):
        return image.height, image.width
    if isinstance(image, np.ndarray) and 2 <= image.ndim <= 5:
        height, width = image.shape[:2] if image.ndim == 2 else image.shape[-3:-1]
        return height, width
    if isinstance(image, Tensor) and 3 <= image.ndim <= 5:
        return image.shape[-2], image.shape[-1]
    if isinstance(image, Sequence) and not isinstance(image, str) and image:
        sizes = {size_of(one, error=error) for one in image}
        if len(sizes) == 1:
            return sizes.pop()
        raise error(
            f"images of different sizes ({sorted(sizes)}) cannot share a batch; give one at a time"
        )
    raise error(
        f"image= takes PIL images, arrays (height, width, channel) or tensors (channel, height, "
        f"width), one or a list of them; got {type(image).__name__}. Open a file with PIL first"
    )


def side_unit(model: HookedDiffusion) -> int:
    """What both sides of an image must be multiples of, in pixels."""
    pipe: Any = model.pipe
    config = model.denoiser.config
    patch = getattr(config, "patch_size", None) or 1
    side = patch[-1] if isinstance(patch, Sequence) else patch
    levels = len(getattr(config, "block_out_channels", None) or [None])
    processors = [getattr(pipe, name, None) for name in ("image_processor", "video_processor")]
    # Wan's image processor is CLIP's, which knows nothing of latents.
    processor: Any = next(one for one in processors if hasattr(one, "config"))
    return math.lcm(
        processor.config.vae_scale_factor, pixels_to_a_latent(pipe) * side * 2 ** (levels - 1)
    )


def native_size(model: HookedDiffusion) -> tuple[int, int] | None:
    """Height and width in pixels that a model was made for; None where nothing says it."""
    config = model.denoiser.config
    of_videos = (getattr(config, name, None) for name in ("sample_height", "sample_width"))
    side = getattr(model.pipe, "default_sample_size", None) or getattr(config, "sample_size", None)
    both = side if isinstance(side, list | tuple) else (side, side)
    for height, width in (of_videos, both):
        if height is not None and width is not None:
            pixels = pixels_to_a_latent(model.pipe)
            return height * pixels, width * pixels
    return None


def _with_aspect(given: tuple[int, int], height: int | None, width: int | None) -> tuple[int, int]:
    if height is None and width is None:
        return given
    if width is None:
        return height or 0, round(given[1] * (height or 0) / given[0])
    if height is None:
        return round(given[0] * width / given[1]), width
    return height, width
