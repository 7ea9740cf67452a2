"""The size at which a model takes a given image: the image's own, as far as patches allow."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lens.cli.folders import opened
from diffusion_lens.cli.messages import fail

if TYPE_CHECKING:
    from PIL.Image import Image

    from diffusion_lens import HookedDiffusion
    from diffusion_lens.cli.command import Call


def given_image(call: Call, path: Path) -> Image:
    """The picture of `--image` as the model takes it; the call's settings get its height and width.

    A `--set height=` and `--set width=` resize it. What suits a toy model's own images does not
    count here: like any other, it takes a given image at the image's size.
    """
    asked = [one.partition("=")[0] for one in call.setting or ()]
    sides = [call.settings[name] for name in ("height", "width") if name in asked]
    size = None if None in sides else tuple(sides)
    image = fitted(call.model, opened(path), size=size or None)
    call.settings.update(
        (name, side)
        for name, side in (("height", image.height), ("width", image.width))
        if name in call.parameters
    )
    return image


def fitted(model: HookedDiffusion, image: Image, *, size: tuple[int, ...] | None = None) -> Image:
    """An image at a size that a model takes, as `concept_attention` takes it.

    Sides that the model's patches and levels don't tile are rounded down to ones that they do, by
    resizing. That is said in a warning, and so is a size above the one that the model was made for.

    Args:
        model: The model.
        image: The image.
        size: Height and width in pixels; None for the image's own.
    """
    from PIL.Image import Resampling

    given = (image.height, image.width)
    unit = side_unit(model)
    wanted = given if size is None else size
    height, width = (side // unit * unit for side in wanted)
    if 0 in (height, width):
        fail(
            f"an image of {wanted[0]} x {wanted[1]} pixels is too small for {model.name}, whose "
            f"sides are multiples of {unit}; give --set height=… and --set width=…"
        )
    if (height, width) != tuple(wanted):
        warnings.warn(
            f"the image is resized from {given[0]} x {given[1]} to {height} x {width} pixels "
            f"(height x width): sides must be multiples of {unit}",
            stacklevel=2,
        )
    native = native_size(model)
    if native is not None and height * width > native[0] * native[1]:
        warnings.warn(
            f"the image has {height} x {width} pixels, {model.name} was made for {native[0]} x "
            f"{native[1]} (height x width): above its own size a model is slow and less to be "
            "trusted; give --set height=… and --set width=…",
            stacklevel=2,
        )
    return image if (height, width) == given else image.resize((width, height), Resampling.LANCZOS)


def side_unit(model: HookedDiffusion) -> int:
    """What both sides of an image must be multiples of, in pixels."""
    pipe: Any = model.pipe
    config = model.denoiser.config
    patch = getattr(config, "patch_size", None) or 1
    levels = len(getattr(config, "block_out_channels", None) or [None])
    processor = getattr(pipe, "image_processor", None) or pipe.video_processor
    return math.lcm(processor.config.vae_scale_factor, _pixels(pipe) * patch * 2 ** (levels - 1))


def native_size(model: HookedDiffusion) -> tuple[int, int] | None:
    """Height and width in pixels that a model was made for; None where nothing says it."""
    config = model.denoiser.config
    of_videos = (getattr(config, name, None) for name in ("sample_height", "sample_width"))
    side = getattr(model.pipe, "default_sample_size", None) or getattr(config, "sample_size", None)
    both = side if isinstance(side, list | tuple) else (side, side)
    for height, width in (of_videos, both):
        if height is not None and width is not None:
            return height * _pixels(model.pipe), width * _pixels(model.pipe)
    return None


def _pixels(pipe: Any) -> int:
    """How many pixels of each side are one of the latents."""
    return getattr(pipe, "vae_scale_factor_spatial", None) or pipe.vae_scale_factor
