"""The picture of `--image`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lens.cli.checks import refuse_unread
from diffusion_lens.cli.folders import opened

if TYPE_CHECKING:
    from PIL.Image import Image

    from diffusion_lens.cli.command import Call


def given_image(call: Call, path: Path) -> Image:
    """The picture of `--image` as the model takes it; the call's settings get its height and width.

    A `--set height=` and `--set width=` resize it.
    """
    from diffusion_lens.authoring import fitted

    sides = ("height", "width")
    asked = {one.partition("=")[0] for one in call.setting or ()}.intersection(sides)
    image = fitted(call.model, opened(path), **{side: call.settings[side] for side in asked})
    call.settings.update((side, getattr(image, side)) for side in sides if side in call.parameters)
    return image


def refuse_unread_of_image(
    call: Call, image: Path | None, *, noise_level: Any, num_samples: Any
) -> None:
    """Refuse options that a given image alone reads, and those that only a generated one does."""
    of_image = {"--noise-level": noise_level, "--num-samples": num_samples}
    refuse_unread(of_image, unless="--image", read=image is not None)
    of_run = {"--num-inference-steps": call.num_inference_steps}
    refuse_unread(of_run, unless="a generated image", read=image is None)
