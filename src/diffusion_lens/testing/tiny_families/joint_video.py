"""Tiny denoisers of videos and of edited images whose streams have weights of their own."""

from __future__ import annotations

import torch
from torch import nn

from diffusion_lens.testing.tiny_families.drawing import (
    HEIGHT,
    TEXT_TOKENS,
    WIDTH,
    Draw,
    Made,
    Make,
    step_500,
)


def _joy_image(name: str) -> nn.Module:
    import diffusers

    return getattr(diffusers, name)(
        patch_size=(1, 2, 2),
        in_channels=4,
        hidden_size=32,
        num_attention_heads=4,
        text_dim=24,
        num_layers=3,
        rope_dim_list=(4, 2, 2),
    )


def joy_image_edit(draw: Draw, batch: int) -> Made:
    """JoyImage-Edit, with one reference before the image."""
    return _joy_image("JoyImageEditTransformer3DModel"), {
        "hidden_states": draw(batch, 2, 4, 1, 2 * HEIGHT, 2 * WIDTH),
        "encoder_hidden_states": draw(batch, TEXT_TOKENS, 24),
        "timestep": step_500(batch).float(),
    }


def joy_image_edit_plus(draw: Draw, batch: int) -> Made:
    """JoyImage-Edit Plus, with one smaller reference behind the image."""
    shapes = [(1, HEIGHT, WIDTH), (1, 2, 3)]
    return _joy_image("JoyImageEditPlusTransformer3DModel"), {
        "hidden_states": draw(batch, HEIGHT * WIDTH + 6, 4, 1, 2, 2),
        "encoder_hidden_states": draw(batch, TEXT_TOKENS, 24),
        "timestep": step_500(batch).float(),
        "shape_list": [shapes] * batch,
    }


def easy_animate(draw: Draw, batch: int) -> Made:
    """EasyAnimate."""
    from diffusers import EasyAnimateTransformer3DModel

    transformer = EasyAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        num_layers=3,
        mmdit_layers=3,
        time_embed_dim=20,
        text_embed_dim=24,
    )
    return transformer, {
        "hidden_states": draw(batch, 4, 2, 2 * HEIGHT, 2 * WIDTH),
        "encoder_hidden_states": draw(batch, TEXT_TOKENS, 24),
        "timestep": step_500(batch),
    }


def motif_video(draw: Draw, batch: int) -> Made:
    """Motif-Video, without cross-attention and decoder."""
    from diffusers import MotifVideoTransformer3DModel

    transformer = MotifVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=2,
        num_single_layers=2,
        mlp_ratio=2.0,
        text_embed_dim=24,
        rope_axes_dim=(4, 2, 2),
    )
    return transformer, {
        "hidden_states": draw(batch, 4, 2, 2 * HEIGHT, 2 * WIDTH),
        "encoder_hidden_states": draw(batch, TEXT_TOKENS, 24),
        "encoder_attention_mask": torch.ones(batch, TEXT_TOKENS),
        "timestep": step_500(batch),
    }


def mochi(draw: Draw, batch: int) -> Made:
    """Mochi; padding is dropped from the text of the first sample alone."""
    from diffusers import MochiTransformer3DModel

    transformer = MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=3,
        pooled_projection_dim=20,
        in_channels=4,
        text_embed_dim=24,
        time_embed_dim=12,
    )
    mask = torch.ones(batch, TEXT_TOKENS, dtype=torch.bool)
    mask[0, -2:] = False
    return transformer, {
        "hidden_states": draw(batch, 4, 2, 2 * HEIGHT, 2 * WIDTH),
        "encoder_hidden_states": draw(batch, TEXT_TOKENS, 24),
        "encoder_attention_mask": mask,
        "timestep": step_500(batch),
    }


FAMILIES: dict[str, Make] = {
    "joy_image_edit": joy_image_edit,
    "joy_image_edit_plus": joy_image_edit_plus,
    "easy_animate": easy_animate,
    "motif_video": motif_video,
    "mochi": mochi,
}
