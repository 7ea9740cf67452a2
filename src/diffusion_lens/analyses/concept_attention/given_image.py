"""Real images and videos for the models: their size kept as far as the patches allow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diffusion_lens import HookedDiffusion
from diffusion_lens.authoring import fitted_size, size_of
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

    Its size is that of `fitted_size`.

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
    sides = {"height": height, "width": width}
    size = fitted_size(model, image, **sides, error=ConceptError)
    pipe: Any = model.pipe
    video = hasattr(pipe, "video_processor")
    processor = pipe.video_processor if video else pipe.image_processor
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
        given_size=size_of(image),
        size=size,
    )
