"""Tiny denoisers of every family: real diffusers classes, random weights, a call that fits each.

Fresh diffusers weights make poor tests: gates start at zero, so that half of a block does nothing,
and attention is all but uniform, so that a mixed-up head or stream hardly shows. Here every weight
is drawn so that gates are of order 1 and the scores of one query differ by several units.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lens.border import Count, Seed, public

TEXT_TOKENS = 7
"""Length of the text: another number than any count of image tokens, heads or widths."""

SHARPNESS = 1.6
"""Factor on the projections to queries and keys (and on the weights of their norms)."""

QUERIES_AND_KEYS = ("to_q.", "to_k.", "add_q_proj.", "add_k_proj.")
QUERY_AND_KEY_NORMS = ("norm_q.", "norm_k.", "norm_added_q.", "norm_added_k.")

Draw = Callable[..., Tensor]


@public
def tiny_denoiser(
    family: str, *, dtype: torch.dtype = torch.float32, batch: Count = 2, seed: Seed = 0
) -> tuple[nn.Module, dict[str, Any]]:
    """A small random denoiser of a family, and the keyword arguments of one call.

    Args:
        family: One of `TINY_FAMILIES`.
        dtype: Precision of the weights and of every floating input.
        batch: Batch size; even, so that it can hold two guidance branches.
        seed: Of weights and inputs.

    Returns:
        The denoiser, in evaluation mode, and its arguments.

    Raises:
        LookupError: If the family has no tiny model.
    """
    if family not in TINY_FAMILIES:
        raise LookupError(f"no tiny model of {family!r}; there are {', '.join(TINY_FAMILIES)}")
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    with torch.random.fork_rng(devices=[]):
        denoiser, inputs = TINY_FAMILIES[family](draw, batch)
    _draw_weights(denoiser, generator)
    nn.Module.to(denoiser, dtype)  # the override in diffusers logs a warning about nothing
    return denoiser.eval(), _cast(inputs, dtype)


def _draw_weights(denoiser: nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        for name, weight in denoiser.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim > 1:
                factor = SHARPNESS if any(part in name for part in QUERIES_AND_KEYS) else 1.0
                weight.copy_(noise * factor * weight[0].numel() ** -0.5)
            elif "norm" in name and name.endswith("weight"):
                sharp = any(part in name for part in QUERY_AND_KEY_NORMS)
                weight.copy_((SHARPNESS if sharp else 1.0) + 0.1 * noise)
            else:
                weight.copy_(0.3 * noise)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, dict):
        return {key: _cast(inner, dtype) for key, inner in value.items()}
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(dtype)
    return value


def _unet(draw: Draw, batch: int, **changes: Any) -> tuple[nn.Module, dict[str, Any]]:
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


def _sd1(draw: Draw, batch: int) -> tuple[nn.Module, dict[str, Any]]:
    return _unet(draw, batch)


def _sd2(draw: Draw, batch: int) -> tuple[nn.Module, dict[str, Any]]:
    heads = (2, 4)  # diffusers calls the number of heads `attention_head_dim`
    return _unet(
        draw, batch, use_linear_projection=True, upcast_attention=True, attention_head_dim=heads
    )


def _sdxl(draw: Draw, batch: int) -> tuple[nn.Module, dict[str, Any]]:
    unet, inputs = _unet(
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
    return unet, inputs | {"added_cond_kwargs": pooled}


def _sd3(draw: Draw, batch: int, **changes: Any) -> tuple[nn.Module, dict[str, Any]]:
    from diffusers import SD3Transformer2DModel

    transformer = SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=24,
        pooled_projection_dim=20,
        pos_embed_max_size=8,
        **changes,
    )
    return transformer, {
        "hidden_states": draw(batch, 4, 8, 8),
        "encoder_hidden_states": draw(batch, TEXT_TOKENS, 24),
        "pooled_projections": draw(batch, 20),
        "timestep": torch.full((batch,), 500),
    }


def _sd35_medium(draw: Draw, batch: int) -> tuple[nn.Module, dict[str, Any]]:
    return _sd3(draw, batch, dual_attention_layers=(0,), qk_norm="rms_norm")


def _flux(draw: Draw, batch: int) -> tuple[nn.Module, dict[str, Any]]:
    from diffusers import FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=24,
        pooled_projection_dim=20,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    )
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    places = torch.stack([torch.zeros(4, 4), rows, columns], -1).reshape(16, 3)
    return transformer, {
        "hidden_states": draw(batch, 16, 4),
        "encoder_hidden_states": draw(batch, TEXT_TOKENS, 24),
        "pooled_projections": draw(batch, 20),
        "timestep": torch.full((batch,), 0.7),
        "guidance": torch.full((batch,), 3.5),
        "img_ids": places,
        "txt_ids": torch.zeros(TEXT_TOKENS, 3),
    }


def _cogvideox(draw: Draw, batch: int) -> tuple[nn.Module, dict[str, Any]]:
    from diffusers import CogVideoXTransformer3DModel
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=20,
        text_embed_dim=24,
        num_layers=3,
        sample_height=8,
        sample_width=12,
        sample_frames=5,
        max_text_seq_length=TEXT_TOKENS,
        use_rotary_positional_embeddings=True,
    )
    return transformer, {
        "hidden_states": draw(batch, 2, 4, 8, 12),
        "encoder_hidden_states": draw(batch, TEXT_TOKENS, 24),
        "timestep": torch.full((batch,), 500),
        "image_rotary_emb": get_3d_rotary_pos_embed(16, ((0, 0), (4, 6)), (4, 6), 2),
    }


TINY_FAMILIES: dict[str, Callable[[Draw, int], tuple[nn.Module, dict[str, Any]]]] = {
    "sd1": _sd1,
    "sd2": _sd2,
    "sdxl": _sdxl,
    "sd3": _sd3,
    "sd35_medium": _sd35_medium,
    "flux": _flux,
    "cogvideox": _cogvideox,
}
"""What makes the tiny denoiser of each family."""
