"""Real images and videos for the models: their size kept as far as the patches allow."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL.Image import Image
from torch import Tensor

from diffusion_lens import HookedDiffusion
from diffusion_lens.errors import ConceptError

COLOURS = 3


@dataclass(frozen=True)
class GivenImage:
    """A real image or video as a model takes it.

    Attributes:
        latents: Its latents, without noise.
        shown: The images, or the frames of each video, at the size that the model sees.
        given_size: Height and width in pixels as they came.
        size: Height and width in pixels as they are used.
    """

    latents: Tensor
    shown: tuple[Any, ...]
    given_size: tuple[int, int]
    size: tuple[int, int]


def take_image(
    model: HookedDiffusion, image: Any, *, height: int | None = None, width: int | None = None
) -> GivenImage:
    """Encode a real image, or the frames of a video, at its own size and shape.

    Sides that the model's patches don't tile are rounded down to ones that they do, by resizing;
    that is said in a warning.

    Args:
        model: The model.
        image: One (PIL, array with axes height, width, channel, or tensor with axes channel,
            height, width), or several of one size; for a video model the frames of one, likewise.
        height: Resize to this height in pixels; the width follows unless it is given.
        width: Likewise.

    Raises:
        ConceptError: If the model takes no images, images differ in size, or one is too small or
            has other channels than red, green and blue.
    """
    pipe: Any = model.pipe
    if pipe is None:
        raise ConceptError(
            "a bare denoiser encodes no image=; wrap the pipeline that it belongs to"
        )
    video = hasattr(pipe, "video_processor")
    processor = pipe.video_processor if video else pipe.image_processor
    given = _size_of(image)
    wanted = _with_aspect(given, height, width)
    multiple = _multiple(pipe, processor)
    size = (wanted[0] // multiple * multiple, wanted[1] // multiple * multiple)
    if 0 in size:
        raise ConceptError(
            f"an image of {wanted[0]} x {wanted[1]} pixels is too small for {model.name}, whose "
            f"patches are {multiple} pixels wide; give height= and width="
        )
    if size != wanted:
        warnings.warn(
            f"the image is resized from {given[0]} x {given[1]} to {size[0]} x {size[1]} pixels "
            f"(height x width): sides must be multiples of {multiple}",
            stacklevel=5,
        )
    read = processor.preprocess_video if video else processor.preprocess
    show = processor.postprocess_video if video else processor.postprocess
    pixels = read(image, height=size[0], width=size[1])
    if pixels.shape[1] != COLOURS:
        raise ConceptError(
            f"image= has {pixels.shape[1]} channels, models take {COLOURS} (red, green, blue); "
            'convert it, with PIL: image.convert("RGB")'
        )
    return GivenImage(
        latents=model.encode_image(image, height=size[0], width=size[1]).to(model.dtype),
        shown=tuple(show(pixels, output_type="pil")),
        given_size=given,
        size=size,
    )


def _size_of(image: Any) -> tuple[int, int]:
    """Height and width of one image or of several."""
    if isinstance(image, Image):
        return image.height, image.width
    if isinstance(image, np.ndarray) and 2 <= image.ndim <= 5:
        height, width = image.shape[:2] if image.ndim == 2 else image.shape[-3:-1]
        return height, width
    if isinstance(image, Tensor) and 3 <= image.ndim <= 5:
        return image.shape[-2], image.shape[-1]
    if isinstance(image, Sequence) and not isinstance(image, str) and image:
        sizes = {_size_of(one) for one in image}
        if len(sizes) == 1:
            return sizes.pop()
        raise ConceptError(
            f"images of different sizes ({sorted(sizes)}) cannot share a batch; give one at a time"
        )
    raise ConceptError(
        f"image= takes PIL images, arrays (height, width, channel) or tensors (channel, height, "
        f"width), one or a list of them; got {type(image).__name__}. Open a file with PIL first"
    )


def _with_aspect(given: tuple[int, int], height: int | None, width: int | None) -> tuple[int, int]:
    if height is None and width is None:
        return given
    if width is None:
        return height or 0, round(given[1] * (height or 0) / given[0])
    if height is None:
        return round(given[0] * width / given[1]), width
    return height, width


def _multiple(pipe: Any, processor: Any) -> int:
    """What both sides must be multiples of: the VAE's factor times the patch of the denoiser."""
    patch = getattr(pipe.transformer.config, "patch_size", 1)
    return math.lcm(processor.config.vae_scale_factor, _spatial_factor(pipe) * patch)


def _spatial_factor(pipe: Any) -> int:
    spatial = getattr(pipe, "vae_scale_factor_spatial", None)
    return pipe.vae_scale_factor if spatial is None else spatial
