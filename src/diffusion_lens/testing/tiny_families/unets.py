"""Tiny U-Nets."""

from __future__ import annotations

from typing import Any

import torch

from diffusion_lens.testing.tiny_families.drawing import TEXT_TOKENS, Draw, Made, Make


def unet(draw: Draw, batch: int, **changes: Any) -> Made:
    """A U-Net with attention at the upper of two levels."""
    from diffusers import UNet2DConditionModel

    config: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 24,
        "attention_head_dim": 4,
    }
    inputs = {
        "sample": draw(batch, 4, 8, 8),
        "timestep": torch.full((batch,), 500),
        "encoder_hidden_states": draw(batch, TEXT_TOKENS, 24),
    }
    return UNet2DConditionModel(**(config | changes)), inputs


def sd1(draw: Draw, batch: int) -> Made:
    """Stable Diffusion 1."""
    return unet(draw, batch)


def sd2(draw: Draw, batch: int) -> Made:
    """Stable Diffusion 2."""
    heads = (2, 4)  # diffusers calls the number of heads `attention_head_dim`
    return unet(
        draw, batch, use_linear_projection=True, upcast_attention=True, attention_head_dim=heads
    )


def sdxl(draw: Draw, batch: int) -> Made:
    """Stable Diffusion XL."""
    denoiser, inputs = unet(
        draw,
        batch,
        block_out_channels=(16, 24),
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 12,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    pooled = {"text_embeds": draw(batch, 12), "time_ids": torch.ones(batch, 6)}
    return denoiser, inputs | {"added_cond_kwargs": pooled}


FAMILIES: dict[str, Make] = {"sd1": sd1, "sd2": sd2, "sdxl": sdxl}
