"""Noise on a render, and a toy pipeline's prediction there, without a sampling loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from diffusion_lens.toys.tokenizers import MAX_LENGTH

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def predict_noised(
    pipe: DiffusionPipeline,
    image: UInt8[np.ndarray, "height width rgb"],
    *,
    caption: str,
    noise_level: float,
    seed: int,
) -> Float[Tensor, ...]:
    """Encode a render, add noise, and let the denoiser predict once, with its caption.

    Args:
        pipe: A toy pipeline.
        image: RGB, 0 to 255.
        caption: The condition.
        noise_level: Timestep over the number of training timesteps, in [0, 1].
        seed: Of the noise.

    Returns:
        The raw prediction: velocity of a UNet, flow of an MM-DiT.

    Raises:
        ValueError: If the noise level is outside [0, 1].
    """
    if not 0 <= noise_level <= 1:
        raise ValueError(f"noise_level is {noise_level}; it lies between 0 (clean) and 1 (noise)")
    part: Any = pipe
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
    clean = part.vae.encode(pixels).latents * part.vae.config.scaling_factor
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))
    if "unet" in pipe.components:
        steps = part.scheduler.config.num_train_timesteps
        timestep = torch.tensor([min(int(noise_level * steps), steps - 1)])
        text = part.encode_prompt(caption, "cpu", 1, False)[0]
        noised = part.scheduler.add_noise(clean, noise, timestep)
        return part.unet(noised, timestep, encoder_hidden_states=text, return_dict=False)[0]
    text, pooled, text_places = part.encode_prompt(
        caption, prompt_2=None, max_sequence_length=MAX_LENGTH
    )
    noised = torch.lerp(clean, noise, noise_level)
    places = part._prepare_latent_image_ids(1, 16, 16, "cpu", text.dtype)
    return part.transformer(
        hidden_states=rearrange(noised, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2),
        timestep=torch.tensor([noise_level]),
        pooled_projections=pooled,
        encoder_hidden_states=text,
        img_ids=places,
        txt_ids=text_places,
        return_dict=False,
    )[0]
