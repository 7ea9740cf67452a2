"""Tiny denoisers whose streams meet in one attention and have weights of their own."""

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
    image_ids,
    step_500,
)


def sd3(draw: Draw, batch: int, **changes: Any) -> Made:
    """Stable Diffusion 3."""
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


def sd35_medium(draw: Draw, batch: int) -> Made:
    """With image-only attention in its first block."""
    return sd3(draw, batch, dual_attention_layers=(0,), qk_norm="rms_norm")


def flux(draw: Draw, batch: int) -> Made:
    """FLUX.1."""
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


def flux2(draw: Draw, batch: int) -> Made:
    """FLUX.2."""
    from diffusers import Flux2Transformer2DModel

    transformer = Flux2Transformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=24,
        timestep_guidance_channels=20,
        axes_dims_rope=(2, 2, 2, 2),
    )
    places = torch.cat([image_ids(), torch.zeros(HEIGHT * WIDTH, 1)], -1)
    words = torch.zeros(TEXT_TOKENS, 4)
    words[:, 3] = torch.arange(TEXT_TOKENS)
    return transformer, {
        "hidden_states": draw(batch, HEIGHT * WIDTH, 4),
        "encoder_hidden_states": draw(batch, TEXT_TOKENS, 24),
        "timestep": half_time(batch),
        "guidance": torch.full((batch,), 3.5),
        "img_ids": places.expand(batch, -1, -1),
        "txt_ids": words.expand(batch, -1, -1),
    }


def qwen_image(draw: Draw, batch: int) -> Made:
    """Qwen-Image."""
    from diffusers import QwenImageTransformer2DModel

    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=24,
        axes_dims_rope=(4, 2, 2),
    )
    return transformer, {
        "hidden_states": draw(batch, HEIGHT * WIDTH, 16),
        "encoder_hidden_states": draw(batch, TEXT_TOKENS, 24),
        "encoder_hidden_states_mask": torch.ones(batch, TEXT_TOKENS, dtype=torch.long),
        "timestep": half_time(batch),
        "img_shapes": [[(1, HEIGHT, WIDTH)]] * batch,
    }


def _like_flux(name: str, draw: Draw, batch: int, **more: Any) -> Made:
    import diffusers

    config: dict[str, Any] = {
        "patch_size": 1,
        "in_channels": 4,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "joint_attention_dim": 24,
        "axes_dims_rope": (2, 2, 4),
    }
    return getattr(diffusers, name)(**(config | more)), {
        "hidden_states": draw(batch, HEIGHT * WIDTH, 4),
        "encoder_hidden_states": draw(batch, TEXT_TOKENS, 24),
        "timestep": half_time(batch),
        "img_ids": image_ids(),
        "txt_ids": torch.zeros(TEXT_TOKENS, 3),
    }


def chroma(draw: Draw, batch: int) -> Made:
    """Chroma."""
    return _like_flux(
        "ChromaTransformer2DModel",
        draw,
        batch,
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )


def bria(draw: Draw, batch: int) -> Made:
    """Bria 3."""
    return _like_flux("BriaTransformer2DModel", draw, batch, axes_dims_rope=(0, 4, 4))


def bria_fibo(draw: Draw, batch: int) -> Made:
    """Bria FIBO, with a layer of the text encoder for each block."""
    denoiser, inputs = _like_flux(
        "BriaFiboTransformer2DModel", draw, batch, axes_dims_rope=(0, 4, 4), text_encoder_dim=12
    )
    layers = [draw(batch, TEXT_TOKENS, 12) for _ in range(4)]
    return denoiser, inputs | {"text_encoder_layers": layers}


def flux3(draw: Draw, batch: int) -> Made:
    """FLUX.3."""
    from diffusers import Flux3Transformer2DModel

    transformer = Flux3Transformer2DModel(
        in_channels=4,
        cond_in_channels=4,
        num_layers=1,
        num_single_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=24,
        timestep_channels=16,
        axes_dims_rope=(2, 2, 2, 2),
    )
    words = torch.zeros(TEXT_TOKENS, 4)
    words[:, 3] = torch.arange(TEXT_TOKENS)
    return transformer, {
        "hidden_states": draw(batch, HEIGHT * WIDTH, 4),
        "encoder_hidden_states": draw(batch, TEXT_TOKENS, 24),
        "timestep": half_time(batch),
        "img_ids": torch.cat([image_ids(), torch.zeros(HEIGHT * WIDTH, 1)], -1),
        "txt_ids": words,
    }


def hidream(draw: Draw, batch: int) -> Made:
    """HiDream; others than square images it fills up with tokens that no input moves."""
    from diffusers import HiDreamImageTransformer2DModel

    transformer = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=(24, 12),  # type: ignore[arg-type]
        text_emb_dim=20,
        num_routed_experts=4,
        num_activated_experts=2,
        axes_dims_rope=(4, 2, 2),  # type: ignore[arg-type]
        max_resolution=(16, 16),
        llama_layers=(0, 1, 2, 3),  # type: ignore[arg-type]
        force_inference_output=True,
    )
    return transformer, {
        "hidden_states": draw(batch, 4, 2 * HEIGHT, 2 * HEIGHT),
        "encoder_hidden_states_t5": draw(batch, TEXT_TOKENS, 24),
        "encoder_hidden_states_llama3": draw(4, batch, 5, 12),
        "pooled_embeds": draw(batch, 20),
        "timesteps": step_500(batch),
    }


def longcat(draw: Draw, batch: int) -> Made:
    """LongCat-Image."""
    return _like_flux("LongCatImageTransformer2DModel", draw, batch, pooled_projection_dim=24)


def ovis(draw: Draw, batch: int) -> Made:
    """Ovis-Image."""
    return _like_flux("OvisImageTransformer2DModel", draw, batch, out_channels=4)


def _hunyuan(name: str, draw: Draw, batch: int, size: tuple[int, ...], **more: Any) -> Made:
    import diffusers

    config: dict[str, Any] = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 4,
        "attention_head_dim": 8,
        "num_layers": 2,
        "num_single_layers": 2,
        "num_refiner_layers": 1,
        "mlp_ratio": 2.0,
        "patch_size": 1,
        "text_embed_dim": 24,
        "rope_axes_dim": (2, 2, 4),
    }
    config = {key: value for key, value in (config | more).items() if value is not None}
    return getattr(diffusers, name)(**config), {
        "hidden_states": draw(batch, 4, *size),
        "timestep": step_500(batch).float(),
        "encoder_hidden_states": draw(batch, TEXT_TOKENS, 24),
        "encoder_attention_mask": torch.ones(batch, TEXT_TOKENS),
    }


def hunyuan_video(draw: Draw, batch: int) -> Made:
    """HunyuanVideo."""
    denoiser, inputs = _hunyuan(
        "HunyuanVideoTransformer3DModel",
        draw,
        batch,
        (2, HEIGHT, WIDTH),
        patch_size_t=1,
        pooled_projection_dim=20,
        guidance_embeds=True,
    )
    return denoiser, inputs | {
        "pooled_projections": draw(batch, 20),
        "guidance": torch.full((batch,), 6000.0),
    }


def hunyuan_video_15(draw: Draw, batch: int) -> Made:
    """With three kinds of text and an image beside it."""
    denoiser, inputs = _hunyuan(
        "HunyuanVideo15Transformer3DModel",
        draw,
        batch,
        (2, HEIGHT, WIDTH),
        patch_size_t=1,
        num_layers=3,
        num_single_layers=None,
        text_embed_2_dim=8,
        image_embed_dim=12,
        target_size=16,
    )
    return denoiser, inputs | {
        "encoder_hidden_states_2": draw(batch, 3, 8),
        "encoder_attention_mask_2": torch.ones(batch, 3),
        "image_embeds": draw(batch, 2, 12),
    }


def hunyuan_image(draw: Draw, batch: int) -> Made:
    """HunyuanImage."""
    denoiser, inputs = _hunyuan(
        "HunyuanImageTransformer2DModel",
        draw,
        batch,
        (HEIGHT, WIDTH),
        patch_size=(1, 1),
        rope_axes_dim=(4, 4),
    )
    return denoiser, inputs


FAMILIES: dict[str, Make] = {
    "sd3": sd3,
    "sd35_medium": sd35_medium,
    "flux": flux,
    "flux2": flux2,
    "qwen_image": qwen_image,
    "chroma": chroma,
    "bria": bria,
    "bria_fibo": bria_fibo,
    "flux3": flux3,
    "hidream": hidream,
    "longcat": longcat,
    "ovis": ovis,
    "hunyuan_video": hunyuan_video,
    "hunyuan_video_15": hunyuan_video_15,
    "hunyuan_image": hunyuan_image,
}
