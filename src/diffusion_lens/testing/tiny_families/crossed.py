"""Tiny denoisers with the image alone in the stream, which reads the text by cross-attention."""

from __future__ import annotations

from typing import Any

import torch

from diffusion_lens.testing.tiny_families.drawing import (
    HEIGHT,
    TEXT_TOKENS,
    WIDTH,
    Draw,
    Made,
    Make,
    step_500,
)


def pixart(draw: Draw, batch: int) -> Made:
    """PixArt."""
    from diffusers import PixArtTransformer2DModel

    transformer = PixArtTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=32,
        caption_channels=24,
        sample_size=16,
        patch_size=2,
        use_additional_conditions=False,
    )
    return transformer, {
        "hidden_states": draw(batch, 4, 2 * HEIGHT, 2 * WIDTH),
        "encoder_hidden_states": draw(batch, TEXT_TOKENS, 24),
        "timestep": step_500(batch),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def _wan(name: str, draw: Draw, batch: int, **more: Any) -> Made:
    import diffusers

    transformer = getattr(diffusers, name)(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        text_dim=24,
        freq_dim=16,
        ffn_dim=40,
        num_layers=2,
        rope_max_seq_len=32,
        **more,
    )
    return transformer, {
        "hidden_states": draw(batch, 4, 2, 2 * HEIGHT, 2 * WIDTH),
        "encoder_hidden_states": draw(batch, TEXT_TOKENS, 24),
        "timestep": step_500(batch),
    }


def wan(draw: Draw, batch: int) -> Made:
    """Wan, text to video."""
    return _wan("WanTransformer3DModel", draw, batch)


def wan_i2v(draw: Draw, batch: int) -> Made:
    """An image beside the text, whose length the class has written in."""
    image = {"image_dim": 12, "added_kv_proj_dim": 32}
    denoiser, inputs = _wan("WanTransformer3DModel", draw, batch, **image)
    text = {"encoder_hidden_states": draw(batch, 512, 24)}
    return denoiser, inputs | text | {"encoder_hidden_states_image": draw(batch, 5, 12)}


def chrono_edit(draw: Draw, batch: int) -> Made:
    """ChronoEdit."""
    return _wan("ChronoEditTransformer3DModel", draw, batch, rope_temporal_skip_len=8)


def skyreels_v2(draw: Draw, batch: int) -> Made:
    """SkyReels-V2."""
    return _wan("SkyReelsV2Transformer3DModel", draw, batch)


def ltx_video(draw: Draw, batch: int) -> Made:
    """LTX-Video."""
    from diffusers import LTXVideoTransformer3DModel

    transformer = LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=24,
    )
    return transformer, {
        "hidden_states": draw(batch, 2 * HEIGHT * WIDTH, 4),
        "encoder_hidden_states": draw(batch, TEXT_TOKENS, 24),
        "timestep": step_500(batch),
        "encoder_attention_mask": torch.ones(batch, TEXT_TOKENS, dtype=torch.bool),
        "num_frames": 2,
        "height": HEIGHT,
        "width": WIDTH,
    }


FAMILIES: dict[str, Make] = {
    "pixart": pixart,
    "wan": wan,
    "wan_i2v": wan_i2v,
    "chrono_edit": chrono_edit,
    "skyreels_v2": skyreels_v2,
    "ltx_video": ltx_video,
}
