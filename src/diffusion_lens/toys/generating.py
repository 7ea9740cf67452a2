"""Images of a toy pipeline as a grader reads them, with the settings that suit the model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import UInt8

from diffusion_lens.toys.tokenizers import MAX_LENGTH

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def call_defaults(
    pipe: "DiffusionPipeline", *, guidance: float = 2.0, steps: int = 20
) -> dict[str, Any]:
    """Arguments for calling a toy pipeline that differ from its class's own defaults.

    A Flux pipeline would else draw 128 pixels, pad its text to 512 tokens and leave out the
    unconditional branch.

    Args:
        pipe: A toy pipeline.
        guidance: Scale of classifier-free guidance; 1 switches it off.
        steps: Denoising steps.

    Returns:
        Keyword arguments for `pipe(prompt, ...)`.
    """
    if "transformer" not in pipe.components:
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
    pipe: "DiffusionPipeline",
    captions: Sequence[str],
    *,
    seed: int = 0,
    guidance: float = 2.0,
    steps: int = 20,
    batch: int = 50,
) -> UInt8[np.ndarray, "batch height width rgb"]:
    """Generate one image for each caption, each from noise of its own.

    Args:
        pipe: A toy pipeline.
        captions: What to draw.
        seed: Of the first caption's noise; the next has the next seed.
        guidance: Scale of classifier-free guidance.
        steps: Denoising steps.
        batch: Captions at a time; it does not change the noise.

    Returns:
        RGB, 0 to 255.
    """
    pipe.set_progress_bar_config(disable=True)
    call: Any = pipe
    images = []
    for start in range(0, len(captions), batch):
        part = list(captions[start : start + batch])
        arguments = call_defaults(pipe, guidance=guidance, steps=steps)
        if "negative_prompt" in arguments:
            arguments["negative_prompt"] = [""] * len(part)
        seeds = range(seed + start, seed + start + len(part))
        noise = [torch.Generator().manual_seed(each) for each in seeds]
        images.append(call(part, generator=noise, output_type="np", **arguments).images)
    return (np.concatenate(images) * 255).round().astype(np.uint8)
