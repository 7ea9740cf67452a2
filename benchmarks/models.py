"""Denoisers of realistic proportions with random weights, 30 to 50 million parameters each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def unet() -> tuple[nn.Module, dict[str, Any]]:
    """A U-Net with 4096- to 64-token attention, a guided batch of two and 77 text tokens."""
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(64, 128, 256, 256),
        attention_head_dim=(2, 4, 8, 8),
        layers_per_block=2,
        norm_num_groups=16,
        cross_attention_dim=768,
    )
    generator = torch.Generator().manual_seed(1)
    inputs = {
        "sample": torch.randn(2, 4, 64, 64, generator=generator),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(2, 77, 768, generator=generator),
    }
    return with_random_weights(model), inputs


def flux() -> tuple[nn.Module, dict[str, Any]]:
    """A Flux with 3 double and 6 single blocks, 1024 image and 128 text tokens."""
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=3,
        num_single_layers=6,
        attention_head_dim=64,
        num_attention_heads=6,
        joint_attention_dim=512,
        pooled_projection_dim=256,
        guidance_embeds=True,
        axes_dims_rope=[8, 28, 28],
    )
    generator = torch.Generator().manual_seed(1)
    side, text = 32, 128
    rows = torch.arange(side).float()
    grid = torch.stack(torch.meshgrid(torch.zeros(1), rows, rows, indexing="ij"), -1)
    inputs = {
        "hidden_states": torch.randn(1, side * side, 64, generator=generator),
        "encoder_hidden_states": torch.randn(1, text, 512, generator=generator),
        "pooled_projections": torch.randn(1, 256, generator=generator),
        "img_ids": grid.reshape(-1, 3),
        "txt_ids": torch.zeros(text, 3),
        "timestep": torch.full((1,), 0.7),
        "guidance": torch.full((1,), 3.5),
    }
    return with_random_weights(model), inputs


@torch.no_grad()
def with_random_weights(model: nn.Module) -> nn.Module:
    """Weights of unit gain, so that attention is neither uniform nor saturated."""
    generator = torch.Generator().manual_seed(0)

    def noise(weight: Tensor, scale: float) -> Tensor:
        return torch.randn(weight.shape, generator=generator) * scale

    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            weight.copy_(noise(weight, weight[0].numel() ** -0.5))
        elif "norm" in name and name.endswith("weight"):
            weight.fill_(1.0)
        else:
            weight.copy_(noise(weight, 0.05))
    return model.eval()
