"""Training of the UNet's decoder: latents back to pixels, edges redrawn."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from diffusion_lens.toys.codec import half_codec
from diffusion_lens.toys.shapes.render import render
from diffusion_lens.toys.shapes.sampling import sample_example
from diffusion_lens.training.batches import to_pixels

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny

LATENT_NOISE = 0.03
"""Noise on the latents while training, since a model's latents are not exact."""


def train_decoder(*, steps: int, batch: int = 32, seed: int = 0) -> "AutoencoderTiny":
    """Train the decoder of `half_codec`; its encoder stays as constructed.

    It reads no text, so it sees every combination of colour and shape, held-out ones too.

    Args:
        steps: Optimizer steps.
        batch: Images of each.
        seed: Of the weights and of the scenes.

    Returns:
        The codec.
    """
    torch.manual_seed(seed)
    codec: Any = half_codec()
    codec.encoder.requires_grad_(False)
    optimizer = torch.optim.AdamW(codec.decoder.parameters(), lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    rng = np.random.default_rng(seed)
    for _ in tqdm(range(steps), desc="decoder", mininterval=5.0):
        images = [render(sample_example(rng).scene, rng=rng).image for _ in range(batch)]
        pixels = to_pixels(np.stack(images))
        with torch.no_grad():
            latents = codec.encode(pixels).latents
            latents = latents + LATENT_NOISE * torch.randn_like(latents)
        with torch.autocast("cpu", torch.bfloat16):
            drawn = codec.decode(latents).sample
        loss = F.mse_loss(drawn.float(), pixels) + 0.1 * F.l1_loss(drawn.float(), pixels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return codec


def main() -> None:
    """Train the decoder and write the codec in fp16."""
    parser = argparse.ArgumentParser(prog="python -m diffusion_lens.training.decoder")
    parser.add_argument("--out", required=True, type=Path, help="folder of the codec")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    codec: Any = train_decoder(steps=arguments.steps)
    codec.to(dtype=torch.float16).save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
