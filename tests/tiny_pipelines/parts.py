"""Denoisers, autoencoders and schedulers of the tiny pipelines."""

from __future__ import annotations

from typing import Any

import torch

from diffusion_lens.testing.tiny import draw_weights, tiny_denoiser

LAYERS = (1, 2, 3)
"""Of the text encoder, where the denoiser reads several."""


def denoiser(name: str, **changes: Any) -> Any:
    """A tiny denoiser, with some of its configuration changed."""
    found: Any = tiny_denoiser(name, batch=2)[0]
    if not changes:
        return found
    config = {key: value for key, value in found.config.items() if not key.startswith("_")}
    changed = type(found)(**(config | changes))  # from_config would drop what was left at default
    draw_weights(changed, torch.Generator().manual_seed(0))
    return changed.eval()


def vae(channels: int, *, kind: str = "AutoencoderKL", blocks: int = 2, **more: Any) -> Any:
    """A tiny autoencoder of images."""
    import diffusers

    config = {
        "latent_channels": channels,
        "block_out_channels": (8,) * blocks,
        "down_block_types": ("DownEncoderBlock2D",) * blocks,
        "up_block_types": ("UpDecoderBlock2D",) * blocks,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 16,
    }
    return getattr(diffusers, kind)(**(config | more)).eval()


def kl(channels: int, **more: Any) -> Any:
    """One that shifts and scales its latents."""
    return vae(channels, scaling_factor=0.36, shift_factor=0.11, **more)


def qwen_vae(channels: int) -> Any:
    """That of Qwen-Image: of videos, with a mean and spread of each channel."""
    from diffusers import AutoencoderKLQwenImage

    return AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=channels,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.3 * number - 0.4 for number in range(channels)],
        latents_std=[1.5 + 0.5 * number for number in range(channels)],
    ).eval()


def wan_vae(channels: int) -> Any:
    """Wan 2.1's, that halves a side once: of videos, with a mean and spread of each channel."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=4,
        z_dim=channels,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.3 * number - 0.4 for number in range(channels)],
        latents_std=[1.5 + 0.5 * number for number in range(channels)],
        scale_factor_temporal=1,
        scale_factor_spatial=2,
    ).eval()


def flux2_vae() -> Any:
    """FLUX.2's, with a batch norm of patches."""
    found = vae(1, kind="AutoencoderKLFlux2")
    found.bn.running_mean.copy_(torch.linspace(-0.6, 0.6, 4))
    found.bn.running_var.copy_(torch.linspace(0.5, 2.0, 4))
    return found


def flow(**more: Any) -> Any:
    """Flow matching."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**more)


def shifted() -> Any:
    """Flow matching whose schedule depends on the size of the image."""
    return flow(use_dynamic_shifting=True, base_image_seq_len=16, max_image_seq_len=64)


def count(pipe: Any, text: str) -> int:
    """Tokens of a template's part: the real ones have the number that the pipeline names."""
    return len(pipe.tokenizer(text).input_ids)
