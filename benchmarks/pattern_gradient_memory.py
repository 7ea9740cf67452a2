"""Peak memory of one gradient through attention patterns, at the size of Stable Diffusion 1.4.

`python benchmarks/pattern_gradient_memory.py`: a U-Net of 860 million random weights in float32 and
latents of 64 x 64, one prompt, with the losses of Attend-and-Excite (patterns of 16 x 16) and of
its form with head relevance (patterns of every head, those of 64 x 64 among them). Each
measurement runs in a process of its own.
"""

import argparse
import json
import resource
import sys
from typing import Any

import torch
from held_memory import in_fresh_process

from diffusion_lens import HookedDiffusion, Run
from diffusion_lens.analyses.attend_and_excite.attend_and_excite import NeglectLoss
from diffusion_lens.analyses.attend_and_excite.maps import Columns
from diffusion_lens.interventions import PatternGradient

GIB = 2**30
TOKENS = (2, 5)
WAYS = {
    "plain": "the pipeline's own evaluation",
    "a&e": "A&E, blocks recomputed (default)",
    "a&e-kept": "A&E, everything kept",
    "hrv": "A&E-HRV, blocks recomputed (default)",
    "hrv-kept": "A&E-HRV, everything kept",
}


def model() -> HookedDiffusion:
    """Stable Diffusion 1.4 without its text encoder, with random weights."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(320, 640, 1280, 1280),
        attention_head_dim=8,
        cross_attention_dim=768,
    )
    parts: dict[str, Any] = dict.fromkeys(
        ("text_encoder", "tokenizer", "safety_checker", "feature_extractor")
    )
    parts |= {
        "vae": AutoencoderKL(block_out_channels=(32, 32, 32, 32)),
        "unet": unet.eval(),
        "scheduler": DDIMScheduler(),
    }
    pipe = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    return HookedDiffusion(pipe)


def peak() -> float:
    """Largest resident memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def measured(way: str) -> dict[str, float]:
    """Memory before and at the peak of one evaluation."""
    hooked = model()
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(1, 77, 768, generator=generator)
    latents = torch.randn(1, 4, 64, 64, generator=generator)
    run = Run(None, prompt_embeds=text, num_inference_steps=50)
    before = peak()
    if way == "plain":
        hooked.denoise(latents, prompt=run.with_(guidance_scale=1.0), step=10)
        return {"before": before, "peak": peak()}
    method, _, kept = way.partition("-")
    points = {str(site.name): site for site in hooked.text_pattern_sites()}
    if method == "a&e":
        points = {name: site for name, site in points.items() if hooked.points[name].level == 2}
    heads = {
        (block, head)
        for name in points
        if (block := hooked.points[name].block) is not None
        for head in range(8)
    }
    factors = tuple(dict.fromkeys(heads, 1.0) for _ in TOKENS) if method == "hrv" else None
    loss = NeglectLoss(TOKENS, factors, None, Columns(), 0.5)
    gradient = PatternGradient(hooked, run, list(points.values()), loss, checkpoint=not kept)
    found = gradient(latents, 10)
    assert found.gradient.abs().max() > 0
    return {"before": before, "peak": peak()}


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--way", choices=WAYS)
    given = parser.parse_args(arguments)
    if given.way:
        sys.stdout.write(json.dumps(measured(given.way)) + "\n")
        return
    sys.stdout.write("| | loaded, GiB | peak, GiB |\n|---|---|---|\n")
    for way, name in WAYS.items():
        found = in_fresh_process(__file__, "--way", way)
        sys.stdout.write(f"| {name} | {found['before']:.2f} | {found['peak']:.2f} |\n")


if __name__ == "__main__":
    main()
