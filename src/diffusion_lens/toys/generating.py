"""Images of a toy pipeline as a grader reads them, with the settings that suit the model."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import UInt8

from diffusion_lens.errors import RunError, closest
from diffusion_lens.toys.shapes.world import WORDS
from diffusion_lens.toys.tokenizers import MAX_LENGTH, caption_ids

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from diffusion_lens.hooked_diffusion.model import HookedDiffusion


def _pipeline(pipe: "DiffusionPipeline | HookedDiffusion") -> Any:
    """The pipeline itself, also of a `HookedDiffusion`."""
    return getattr(pipe, "pipe", pipe)


def _check_words(caption: str) -> None:
    """Name words that the models never saw; refuse a text of which they would drop the end."""
    caption_ids(caption, start=True)
    for word in caption.split():
        if word not in WORDS:
            near = closest(word.lower().strip(".,"), WORDS, count=1)
            hint = f", closest: {near[0]!r}" if near else ""
            warnings.warn(
                f"{word!r} in {caption!r} is no word of the shapes world{hint}; the toy models "
                "read it as an unknown word",
                stacklevel=3,
            )


def call_defaults(
    pipe: "DiffusionPipeline | HookedDiffusion", *, guidance: float = 2.0, steps: int = 20
) -> dict[str, Any]:
    """Arguments for calling a toy pipeline that differ from its class's own defaults.

    A Flux pipeline would else draw 128 pixels, pad its text to 512 tokens and leave out the
    unconditional branch.

    Args:
        pipe: A toy pipeline, or a `HookedDiffusion` of one.
        guidance: Scale of classifier-free guidance; 1 switches it off.
        steps: Denoising steps.

    Returns:
        Keyword arguments for `pipe(prompt, ...)`.
    """
    if "transformer" not in _pipeline(pipe).components:
        return {"num_inference_steps": steps, "guidance_scale": guidance}
    return {
        "num_inference_steps": steps,
        "true_cfg_scale": guidance,
        "negative_prompt": "",
        "height": 32,
        "width": 32,
        "max_sequence_length": MAX_LENGTH,
    }


def generate(
    pipe: "DiffusionPipeline | HookedDiffusion",
    captions: str | Sequence[str],
    *,
    seed: int = 0,
    guidance: float = 2.0,
    steps: int = 20,
    batch: int = 50,
) -> UInt8[np.ndarray, "batch height width rgb"]:
    """Generate one image for each caption, each from noise of its own.

    Args:
        pipe: A toy pipeline, or a `HookedDiffusion` of one.
        captions: What to draw; one text is one caption.
        seed: Of the first caption's noise; the next has the next seed.
        guidance: Scale of classifier-free guidance.
        steps: Denoising steps.
        batch: Captions at a time; it does not change the noise.

    Returns:
        RGB, 0 to 255.

    Raises:
        RunError: If there are no captions, or no steps.
        ValueError: If a caption has more words than the models read. One with words of no meaning
            to them is drawn with a warning.
    """
    captions = [captions] if isinstance(captions, str) else list(captions)
    if not captions or steps < 1:
        raise RunError(
            f"{len(captions)} captions in {steps} steps; give a caption or several, and at least "
            "one step"
        )
    for caption in captions:
        _check_words(caption)
    call = _pipeline(pipe)
    call.set_progress_bar_config(disable=True)
    images = []
    for start in range(0, len(captions), batch):
        part = captions[start : start + batch]
        arguments = call_defaults(pipe, guidance=guidance, steps=steps)
        if "negative_prompt" in arguments:
            arguments["negative_prompt"] = [""] * len(part)
        seeds = range(seed + start, seed + start + len(part))
        noise = [torch.Generator().manual_seed(each) for each in seeds]
        images.append(call(part, generator=noise, output_type="np", **arguments).images)
    return (np.concatenate(images) * 255).round().astype(np.uint8)
