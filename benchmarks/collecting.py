"""What collecting costs: CPU time of runs whose activations are written, in units of plain runs.

    python benchmarks/collecting.py [--model unet|flux] [--rounds 5] [--prompts 2] [--steps 3]

Residuals after every block, 10 per cent of the image's tokens, in half precision, to a new folder
each time. What comes once in a collection, however many prompts it has (its first step, run to see
sizes, and the fingerprint of the weights), is measured apart.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bracketing import bracket, measure_steadily
from models import flux, unet, with_random_weights

from diffusion_lens import HookedDiffusion
from diffusion_lens.activations import ActivationStore
from diffusion_lens.activations.collecting import FILE_BYTES, collect
from diffusion_lens.activations.files import ShardWriter
from diffusion_lens.activations.plan import Plan
from diffusion_lens.toys.loading import load

SHARE = 0.1
TOKENS = {"unet": 64 * 64, "flux": 32 * 32}
SITES = "blocks.*.img.hook_resid_post"


def text_encoder(tokenizer: Any, width: int) -> Any:
    """One layer of CLIP, of a width."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return CLIPTextModel(config).eval()


def unet_pipeline() -> Any:
    """Stable Diffusion with the U-Net of `models.py`."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline

    tokenizer = load("shapes-unet").tokenizer
    return StableDiffusionPipeline(
        vae=AutoencoderKL(block_out_channels=(32,), norm_num_groups=8).eval(),
        text_encoder=text_encoder(tokenizer, 768),
        tokenizer=tokenizer,
        unet=unet()[0],
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def flux_pipeline() -> Any:
    """Flux with the transformer of `models.py`."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline
    from transformers import T5Config, T5EncoderModel

    tokenizer = load("shapes-unet").tokenizer
    sizes = {"d_model": 512, "d_kv": 64, "d_ff": 512, "num_layers": 1, "num_heads": 4}
    second = T5EncoderModel(T5Config(vocab_size=len(tokenizer), **sizes)).eval()
    return FluxPipeline(
        vae=AutoencoderKL(block_out_channels=(32,), latent_channels=16, norm_num_groups=8).eval(),
        text_encoder=text_encoder(tokenizer, 256),
        tokenizer=tokenizer,
        text_encoder_2=with_random_weights(second),
        tokenizer_2=tokenizer,
        transformer=flux()[0],
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


def main() -> None:
    measure_steadily()
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", choices=tuple(TOKENS), default="unet")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--prompts", type=int, default=2)
    options.add_argument("--steps", type=int, default=3)
    asked = options.parse_args()
    pipe = unet_pipeline() if asked.model == "unet" else flux_pipeline()
    pipe.set_progress_bar_config(disable=True)
    model = HookedDiffusion(pipe)
    prompts = [f"a red circle {number}" for number in range(asked.prompts)]
    settings: dict[str, Any] = {"num_inference_steps": asked.steps}
    settings |= {"height": 64, "width": 64}
    if asked.model == "flux":
        settings |= {"max_sequence_length": 64}
    given: dict[str, Any] = {
        "sites": SITES,
        "tokens": int(SHARE * TOKENS[asked.model]),
        "dtype": torch.float16,
    }
    kinds = {"steps": None, "branch": "cond", "seeds": None, "images": False, "latents": False}
    plan = Plan.of(model, prompts, settings=settings, batch_size=1, **kinds, **given)
    folder = Path(tempfile.mkdtemp())

    def plain() -> None:
        for prompt in prompts:
            model(prompt, output_type="latent", **settings)

    def collected() -> None:
        writer = ShardWriter(folder, 0, "", FILE_BYTES)
        for _ in plan.gather(range(plan.batches), writer.add):
            pass
        writer.finish()

    seconds, ratios = bracket(
        plain, {"plain again (control)": plain, "collecting": collected}, rounds=asked.rounds
    )
    weights = sum(one.numel() for one in model.denoiser.parameters()) / 1e6
    print(f"{asked.model}: {weights:.0f} M parameters, {asked.prompts} prompts of {asked.steps} "
          f"steps, {given['tokens']} tokens of each block")  # fmt: skip
    print(f"plain: {seconds:.2f} CPU s")
    for name, ratio in ratios.items():
        print(f"{name}: {ratio}")
    shutil.rmtree(folder)
    start = time.process_time()
    store: ActivationStore = collect(model, prompts, out=folder, **given, **settings)
    print(f"a whole collection, its beginning with it: {time.process_time() - start:.2f} CPU s, "
          f"{len(store):,} rows, {store.nbytes / 1e6:.1f} MB")  # fmt: skip
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
