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
    half_time,
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
        rope_max_seq_len=32,
        **({"num_layers": 2} | more),
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


def wan_animate(draw: Draw, batch: int) -> Made:
    """Wan-Animate: a pose and a face beside the text, whose length the class has written in."""
    from diffusers import WanAnimateTransformer3DModel

    transformer = WanAnimateTransformer3DModel(
        patch_size=(1, 2, 2),  # type: ignore[arg-type]
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=12,
        latent_channels=4,
        out_channels=4,
        text_dim=24,
        freq_dim=16,
        ffn_dim=40,
        num_layers=4,
        image_dim=12,
        added_kv_proj_dim=32,
        rope_max_seq_len=32,
        motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8},
        motion_encoder_size=16,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=16,
        face_encoder_hidden_dim=16,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
    )
    return transformer, {
        "hidden_states": draw(batch, 12, 3, 2 * HEIGHT, 2 * WIDTH),
        "encoder_hidden_states": draw(batch, 512, 24),
        "encoder_hidden_states_image": draw(batch, 9, 12),
        "pose_hidden_states": draw(batch, 4, 2, 2 * HEIGHT, 2 * WIDTH),
        "face_pixel_values": draw(batch, 3, 5, 16, 16),
        "timestep": step_500(batch),
    }


def allegro(draw: Draw, batch: int) -> Made:
    """Allegro."""
    from diffusers import AllegroTransformer3DModel

    transformer = AllegroTransformer3DModel(
        patch_size=2,
        patch_size_t=1,
        num_attention_heads=4,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        cross_attention_dim=48,
        caption_channels=24,
        sample_height=2 * HEIGHT,
        sample_width=2 * WIDTH,
        sample_frames=2,
    )
    places = torch.cartesian_prod(*map(torch.arange, (2, HEIGHT, WIDTH))).T.unsqueeze(1)
    angles = torch.arange(6.0)[:, None] * torch.tensor([1.0, 0.3, 1.0, 0.3])
    tables = [(angles.cos(), angles.sin())] * 3
    return transformer, {
        "hidden_states": draw(batch, 4, 2, 2 * HEIGHT, 2 * WIDTH),
        "encoder_hidden_states": draw(batch, 1, TEXT_TOKENS, 24),
        "encoder_attention_mask": torch.ones(batch, TEXT_TOKENS),
        "timestep": step_500(batch),
        "image_rotary_emb": (tuple(tables), tuple(places)),
    }


def kandinsky5(draw: Draw, batch: int) -> Made:
    """Kandinsky 5."""
    from diffusers import Kandinsky5Transformer3DModel

    transformer = Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=24,
        in_text_dim2=20,
        time_dim=16,
        model_dim=32,
        ff_dim=40,
        num_text_blocks=1,
        num_visual_blocks=3,
        axes_dims=(2, 2, 4),
    )
    return transformer, {
        "hidden_states": draw(batch, 2, 2 * HEIGHT, 2 * WIDTH, 4),
        "encoder_hidden_states": draw(batch, TEXT_TOKENS, 24),
        "pooled_projections": draw(batch, 20),
        "timestep": step_500(batch).float(),
        "visual_rope_pos": [torch.arange(size) for size in (2, HEIGHT, WIDTH)],
        "text_rope_pos": torch.arange(TEXT_TOKENS),
    }


def cosmos(draw: Draw, batch: int, **changes: Any) -> Made:
    """Cosmos 1, with learned positions."""
    from diffusers import CosmosTransformer3DModel

    config: dict[str, Any] = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 4,
        "attention_head_dim": 12,
        "num_layers": 3,
        "mlp_ratio": 2.0,
        "text_embed_dim": 24,
        "adaln_lora_dim": 8,
        "max_size": (4, 16, 16),
        "extra_pos_embed_type": "learnable",
        "concat_padding_mask": False,
    }
    return CosmosTransformer3DModel(**(config | changes)), {
        "hidden_states": draw(batch, 4, 2, 2 * HEIGHT, 2 * WIDTH),
        "encoder_hidden_states": draw(batch, TEXT_TOKENS, 24),
        "timestep": step_500(batch).float(),
        "fps": 30,
    }


def cosmos2(draw: Draw, batch: int) -> Made:
    """Cosmos-Predict2, without them."""
    return cosmos(draw, batch, extra_pos_embed_type=None)


def wan_vace(draw: Draw, batch: int) -> Made:
    """Wan VACE, with a control beside the video."""
    control = {"num_layers": 4, "vace_layers": (0, 2), "vace_in_channels": 6}
    denoiser, inputs = _wan("WanVACETransformer3DModel", draw, batch, **control)
    return denoiser, inputs | {
        "control_hidden_states": draw(batch, 6, 2, 2 * HEIGHT, 2 * WIDTH),
        "control_hidden_states_scale": torch.tensor([0.7, 1.3]),
    }


def sana(draw: Draw, batch: int) -> Made:
    """Sana, with linear attention."""
    from diffusers import SanaTransformer2DModel

    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=3,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=24,
        sample_size=8,
        patch_size=1,
    )
    return transformer, {
        "hidden_states": draw(batch, 4, HEIGHT, WIDTH),
        "encoder_hidden_states": draw(batch, TEXT_TOKENS, 24),
        "encoder_attention_mask": torch.ones(batch, TEXT_TOKENS),
        "timestep": step_500(batch),
    }


def sana_video(draw: Draw, batch: int) -> Made:
    """SANA-Video."""
    from diffusers import SanaVideoTransformer3DModel

    transformer = SanaVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=16,
        num_layers=3,
        num_cross_attention_heads=4,
        cross_attention_head_dim=16,
        cross_attention_dim=64,
        caption_channels=24,
        sample_size=8,
        patch_size=(1, 2, 2),
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    return transformer, {
        "hidden_states": draw(batch, 4, 2, 2 * HEIGHT, 2 * WIDTH),
        "encoder_hidden_states": draw(batch, TEXT_TOKENS, 24),
        "encoder_attention_mask": torch.ones(batch, TEXT_TOKENS),
        "timestep": step_500(batch),
    }


def prx(draw: Draw, batch: int) -> Made:
    """PRX."""
    from diffusers import PRXTransformer2DModel

    transformer = PRXTransformer2DModel(
        in_channels=4,
        patch_size=2,
        context_in_dim=24,
        hidden_size=32,
        mlp_ratio=2.0,
        num_heads=4,
        depth=3,
        axes_dim=(4, 4),  # type: ignore[arg-type]
    )
    return transformer, {
        "hidden_states": draw(batch, 4, 2 * HEIGHT, 2 * WIDTH),
        "encoder_hidden_states": draw(batch, TEXT_TOKENS, 24),
        "attention_mask": torch.ones(batch, TEXT_TOKENS, dtype=torch.bool),
        "timestep": half_time(batch),
    }


def nucleus(draw: Draw, batch: int) -> Made:
    """Nucleus-Image, with grouped queries and experts in its fourth block."""
    from diffusers import NucleusMoEImageTransformer2DModel

    transformer = NucleusMoEImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=5,
        attention_head_dim=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 2, 2),
        mlp_ratio=8.0,
        moe_enabled=True,
        num_experts=4,
        moe_intermediate_dim=16,
        capacity_factors=2.0,
    )
    return transformer, {
        "hidden_states": draw(batch, HEIGHT * WIDTH, 16),
        "encoder_hidden_states": draw(batch, TEXT_TOKENS, 24),
        "timestep": half_time(batch),
        "img_shapes": [(1, HEIGHT, WIDTH)] * batch,
    }


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


def hunyuan_dit(draw: Draw, batch: int) -> Made:
    """HunyuanDiT, with two texts and a long skip into its last block."""
    from diffusers import HunyuanDiT2DModel

    transformer = HunyuanDiT2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=32,
        num_layers=4,
        mlp_ratio=2.0,
        cross_attention_dim=20,
        cross_attention_dim_t5=24,
        pooled_projection_dim=12,
        text_len=4,
        text_len_t5=3,
    )
    angles = torch.arange(HEIGHT * WIDTH)[:, None] * torch.tensor([1.0, 1.0, 0.3, 0.3] * 2)
    return transformer, {
        "hidden_states": draw(batch, 4, 2 * HEIGHT, 2 * WIDTH),
        "encoder_hidden_states": draw(batch, 4, 20),
        "text_embedding_mask": torch.ones(batch, 4),
        "encoder_hidden_states_t5": draw(batch, 3, 24),
        "text_embedding_mask_t5": torch.ones(batch, 3),
        "timestep": step_500(batch).float(),
        "image_meta_size": torch.tensor([[64.0, 96.0, 64.0, 96.0, 0.0, 0.0]] * batch),
        "style": torch.zeros(batch, dtype=torch.long),
        "image_rotary_emb": (angles.cos(), angles.sin()),
    }


def ltx2(draw: Draw, batch: int) -> Made:
    """LTX-2, with five tokens of sound."""
    from diffusers import LTX2VideoTransformer3DModel

    transformer = LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        audio_in_channels=6,
        audio_out_channels=6,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        num_layers=2,
        caption_channels=24,
    )
    return transformer, {
        "hidden_states": draw(batch, 2 * HEIGHT * WIDTH, 4),
        "audio_hidden_states": draw(batch, 5, 6),
        "encoder_hidden_states": draw(batch, TEXT_TOKENS, 24),
        "audio_encoder_hidden_states": draw(batch, TEXT_TOKENS, 24),
        "timestep": step_500(batch).float(),
        "encoder_attention_mask": torch.ones(batch, TEXT_TOKENS),
        "audio_encoder_attention_mask": torch.ones(batch, TEXT_TOKENS),
        "num_frames": 2,
        "height": HEIGHT,
        "width": WIDTH,
        "audio_num_frames": 5,
    }


FAMILIES: dict[str, Make] = {
    "pixart": pixart,
    "wan": wan,
    "wan_i2v": wan_i2v,
    "chrono_edit": chrono_edit,
    "skyreels_v2": skyreels_v2,
    "ltx_video": ltx_video,
    "wan_animate": wan_animate,
    "wan_vace": wan_vace,
    "sana": sana,
    "sana_video": sana_video,
    "prx": prx,
    "hunyuan_dit": hunyuan_dit,
    "ltx2": ltx2,
    "nucleus": nucleus,
    "allegro": allegro,
    "kandinsky5": kandinsky5,
    "cosmos": cosmos,
    "cosmos2": cosmos2,
}
