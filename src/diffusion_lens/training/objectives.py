"""The loss of each family: what is noised, what is predicted, how noise levels are drawn."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from diffusion_lens.toys.tokenizers import END, MAX_LENGTH, PAD, START
from diffusion_lens.training.batches import Batch

if TYPE_CHECKING:
    from diffusers import FluxPipeline, StableDiffusionPipeline


def spread_uniform(count: int) -> Float[Tensor, " batch"]:
    """Uniform draws in [0, 1), one from each of `count` equal parts: less variance than free draws.

    Args:
        count: How many.

    Returns:
        The draws, in ascending order.
    """
    return (torch.arange(count) + torch.rand(count)) / count


def unet_loss(
    pipe: "StableDiffusionPipeline", batch: Batch, *, noise_power: float = 1.0
) -> Float[Tensor, ""]:
    """Mean squared error of the predicted velocity.

    Args:
        pipe: The pipeline that is trained.
        batch: Samples on its device.
        noise_power: Timesteps are uniform draws to this power.

    Returns:
        The loss.
    """
    with torch.no_grad():
        clean = pipe.vae.encode(batch.images).latents * pipe.vae.config.scaling_factor
    noise = torch.randn_like(clean)
    steps = pipe.scheduler.config.num_train_timesteps
    timesteps = (spread_uniform(len(clean)) ** noise_power * steps).long().to(clean.device)
    noised = pipe.scheduler.add_noise(clean, noise, timesteps)
    target = pipe.scheduler.get_velocity(clean, noise, timesteps)
    with torch.autocast(clean.device.type, torch.bfloat16):
        text = pipe.text_encoder(batch.clip_ids)[0]
        noised = noised.contiguous(memory_format=torch.channels_last)
        predicted = pipe.unet(noised, timesteps, encoder_hidden_states=text, return_dict=False)[0]
    return F.mse_loss(predicted.float(), target)


def image_positions(side: int, *, stride: int = 1) -> Float[Tensor, "pos 3"]:
    """Rotary positions of image tokens: zero, row, column.

    Args:
        side: Tokens along each side.
        stride: Tokens of the full resolution that one token stands for, along each side.

    Returns:
        One row for each token.
    """
    place = torch.arange(side) * stride + (stride - 1) / 2
    rows, columns = torch.meshgrid(place, place, indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3)


def mmdit_loss(
    pipe: "FluxPipeline",
    batch: Batch,
    *,
    pooled_drop: float,
    coarse: bool,
    noise_mean: float = 0.0,
) -> Float[Tensor, ""]:
    """Mean squared error of the predicted flow, noise levels drawn from a logistic of a normal.

    Args:
        pipe: The pipeline that is trained.
        batch: Samples on its device.
        pooled_drop: Share of samples whose pooled embedding is that of no caption.
        coarse: Train on images of half the resolution, with tokens that keep their place.
        noise_mean: Mean of the normal; above 0 the levels lean to much noise.

    Returns:
        The loss.
    """
    device = batch.images.device
    with torch.no_grad():
        images = F.avg_pool2d(batch.images, 2) if coarse else batch.images
        clean = pipe.vae.encode(images).latents * pipe.vae.config.scaling_factor
        clean = rearrange(clean, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2)
    noise = torch.randn_like(clean)
    normal = torch.special.ndtri(spread_uniform(len(clean)).clamp(1e-4, 1 - 1e-4))
    level = torch.sigmoid(normal + noise_mean).to(device)
    noised = torch.lerp(clean, noise, level[:, None, None])
    dropped = torch.rand(len(clean), 1, device=device) < pooled_drop
    empty = torch.tensor([START, END] + [PAD] * (MAX_LENGTH - 2), device=device)
    side = 8 if coarse else 16
    with torch.autocast(device.type, torch.bfloat16):
        pooled = pipe.text_encoder(torch.where(dropped, empty, batch.clip_ids)).pooler_output
        text = pipe.text_encoder_2(batch.t5_ids)[0]
        predicted = pipe.transformer(
            hidden_states=noised,
            timestep=level,
            pooled_projections=pooled,
            encoder_hidden_states=text,
            img_ids=image_positions(side, stride=16 // side).to(device),
            txt_ids=torch.zeros(text.shape[1], 3, device=device),
            return_dict=False,
        )[0]
    return F.mse_loss(predicted.float(), noise - clean)
