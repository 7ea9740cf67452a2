"""Images of a toy pipeline as a grader reads them, with the settings that suit the model."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import UInt8

from diffusion_lens.border import Number, Seed, public
from diffusion_lens.errors import RunError
from diffusion_lens.toys.shapes.captions import no_word
from diffusion_lens.toys.shapes.world import UNKNOWN_WORD, WORDS
from diffusion_lens.toys.tokenizers import MAX_LENGTH, caption_ids

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from diffusion_lens.hooked_diffusion.model import HookedDiffusion


def _pipeline(pipe: "DiffusionPipeline | HookedDiffusion") -> Any:
    """The pipeline itself, also of a `HookedDiffusion`."""
    found = getattr(pipe, "pipe", pipe)
    if not hasattr(found, "components"):
        raise RunError(
            f"{type(pipe).__name__} draws nothing by itself; give `toys.load(...)`, or a "
            "`HookedDiffusion` of a pipeline"
        )
    return found


def _as_trained(caption: str) -> str:
    """The caption with `UNKNOWN_WORD` for words that the models never saw.

    A tokenizer would spell such a word in several tokens, and drop what then comes too late.
    """
    for word in {word: None for word in caption.split() if word not in (*WORDS, UNKNOWN_WORD)}:
        warnings.warn(f"{no_word(word, caption)} It is drawn as an unknown word.", stacklevel=4)
    caption_ids(caption, start=True)
    return " ".join(word if word in WORDS else UNKNOWN_WORD for word in caption.split())


@public
def call_defaults(
    pipe: "DiffusionPipeline | HookedDiffusion", *, guidance: Number = 2.0, steps: int = 20
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


@public
def generate(
    pipe: "DiffusionPipeline | HookedDiffusion",
    captions: str | Sequence[str],
    *,
    seed: Seed = 0,
    guidance: Number = 2.0,
    steps: int = 20,
    batch: int = 50,
) -> UInt8[np.ndarray, "batch height width rgb"]:
    """Generate one image for each caption, each from noise of its own.

    Words that are not of the world are drawn as unknown ones, as in training, with a warning.

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
        RunError: If there are no captions or steps, or a bare denoiser in place of a pipeline.
        ValueError: If a caption has more words than the models read.
    """
    captions = [captions] if isinstance(captions, str) else list(captions)
    if not captions or steps < 1 or batch < 1:
        raise RunError(
            f"{len(captions)} captions, {batch} at a time, in {steps} steps; give at least one of "
            "each"
        )
    captions = [_as_trained(caption) for caption in captions]
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
