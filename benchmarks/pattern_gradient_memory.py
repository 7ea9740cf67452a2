"""Peak memory of one gradient through attention patterns, at the size of Stable Diffusion 1.4.

`python benchmarks/pattern_gradient_memory.py`: a U-Net of 860 million random weights in float32 and
latents of 64 x 64, as Attend-and-Excite evaluates it: the patterns of a quarter of the finest
resolution, one prompt. Each measurement runs in a process of its own.
"""

import argparse
import json
import resource
import sys
from typing import Any

import torch
from held_memory import in_fresh_process

from diffusion_lens import HookedDiffusion, Run
from diffusion_lens.interventions import PatternGradient

GIB = 2**30
WAYS = {
    "the pipeline's own evaluation": "plain",
    "gradient, blocks recomputed (default)": "checkpoint",
    "gradient, everything kept": "kept",
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
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(32, 32, 32, 32)),
        unet=unet.eval(),
        scheduler=DDIMScheduler(),
        requires_safety_checker=False,
        **parts,
    )
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
    sites = [
        site for site in hooked.text_pattern_sites() if hooked.points[str(site.name)].level == 2
    ]

    def loss(seen: Any) -> torch.Tensor:
        maps = torch.stack([pattern.mean(1) for pattern, _ in seen]).mean(0)
        return 1 - maps[..., 2].max()

    gradient = PatternGradient(hooked, run, sites, loss, checkpoint=way == "checkpoint")
    found = gradient(latents, 10)
    assert found.gradient.abs().max() > 0
    return {"before": before, "peak": peak(), "sites": len(sites)}


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--way", choices=WAYS.values())
    given = parser.parse_args(arguments)
    if given.way:
        sys.stdout.write(json.dumps(measured(given.way)) + "\n")
        return
    sys.stdout.write("| | loaded, GiB | peak, GiB |\n|---|---|---|\n")
    for name, way in WAYS.items():
        found = in_fresh_process(__file__, "--way", way)
        sys.stdout.write(f"| {name} | {found['before']:.2f} | {found['peak']:.2f} |\n")


if __name__ == "__main__":
    main()
