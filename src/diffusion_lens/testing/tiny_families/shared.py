"""Tiny denoisers whose text and image share their weights."""

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


def cogvideox(draw: Draw, batch: int) -> Made:
    """CogVideoX."""
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


def consisid(draw: Draw, batch: int) -> Made:
    """ConsisID, without a face."""
    from diffusers import ConsisIDTransformer3DModel
    from diffusers.models.embeddings import get_3d_rotary_pos_embed

    transformer = ConsisIDTransformer3DModel(
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
        is_train_face=False,
        use_rotary_positional_embeddings=True,
    )
    return transformer, {
        "hidden_states": draw(batch, 2, 4, 8, 12),
        "encoder_hidden_states": draw(batch, TEXT_TOKENS, 24),
        "timestep": step_500(batch),
        "image_rotary_emb": get_3d_rotary_pos_embed(16, ((0, 0), (4, 6)), (4, 6), 2),
    }


def _cogview(name: str, draw: Draw, batch: int, **more: Any) -> Made:
    import diffusers

    transformer = getattr(diffusers, name)(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        text_embed_dim=24,
        time_embed_dim=20,
        condition_dim=4,
        **more,
    )
    sizes = torch.tensor([[64, 96]] * batch)
    return transformer, {
        "hidden_states": draw(batch, 4, 2 * HEIGHT, 2 * WIDTH),
        "encoder_hidden_states": draw(batch, TEXT_TOKENS, 24),
        "original_size": sizes,
        "target_size": sizes,
        "crop_coords": torch.zeros_like(sizes),
        "timestep": step_500(batch),
    }


def cogview3_plus(draw: Draw, batch: int) -> Made:
    """CogView 3+."""
    name = "CogView3PlusTransformer2DModel"
    return _cogview(name, draw, batch, pos_embed_max_size=12, sample_size=12)


def cogview4(draw: Draw, batch: int) -> Made:
    """CogView 4."""
    return _cogview("CogView4Transformer2DModel", draw, batch, rope_axes_dim=(32, 32))


def glm_image(draw: Draw, batch: int) -> Made:
    """GLM-Image, with ids of image tokens beside the text."""
    from diffusers import GlmImageTransformer2DModel

    transformer = GlmImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        text_embed_dim=24,
        time_embed_dim=20,
        condition_dim=4,
        prior_vq_quantizer_codebook_size=16,
    )
    ids = torch.arange(HEIGHT * WIDTH).remainder(16).expand(batch, -1)
    sizes = torch.tensor([[64.0, 96.0]] * batch)
    return transformer, {
        "hidden_states": draw(batch, 4, 2 * HEIGHT, 2 * WIDTH),
        "encoder_hidden_states": draw(batch, TEXT_TOKENS, 24),
        "prior_token_id": ids,
        "prior_token_drop": torch.zeros_like(ids, dtype=torch.bool),
        "timestep": step_500(batch),
        "target_size": sizes,
        "crop_coords": torch.zeros_like(sizes),
    }


FAMILIES: dict[str, Make] = {
    "cogvideox": cogvideox,
    "consisid": consisid,
    "cogview3_plus": cogview3_plus,
    "cogview4": cogview4,
    "glm_image": glm_image,
}
