"""Tiny denoisers with text and image in one stream."""

from __future__ import annotations

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
)


def z_image(draw: Draw, batch: int) -> Made:
    """32 tokens of image and of text, which is what the model fills up to."""
    from diffusers import ZImageTransformer2DModel

    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=3,
        n_refiner_layers=1,
        n_heads=4,
        n_kv_heads=4,
        cap_feat_dim=24,
        axes_dims=(4, 2, 2),
        axes_lens=(128, 16, 16),
    )
    return transformer, {
        "x": [draw(4, 1, 8, 16) for _ in range(batch)],
        "cap_feats": [draw(32, 24) for _ in range(batch)],
        "t": half_time(batch),
    }


def krea2(draw: Draw, batch: int) -> Made:
    """Krea 2, with grouped queries."""
    from diffusers import Krea2Transformer2DModel

    transformer = Krea2Transformer2DModel(
        in_channels=16,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=40,
        timestep_embed_dim=12,
        text_hidden_dim=24,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=1,
        text_intermediate_size=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 2, 2),
    )
    return transformer, {
        "hidden_states": draw(batch, HEIGHT * WIDTH, 16),
        "encoder_hidden_states": draw(batch, TEXT_TOKENS, 3, 24),
        "timestep": half_time(batch),
        "position_ids": torch.cat([torch.zeros(TEXT_TOKENS, 3), image_ids()]),
        "encoder_attention_mask": torch.ones(batch, TEXT_TOKENS, dtype=torch.bool),
    }


def lumina2(draw: Draw, batch: int) -> Made:
    """Lumina 2, with grouped queries."""
    from diffusers import Lumina2Transformer2DModel

    transformer = Lumina2Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        hidden_size=32,
        num_layers=3,
        num_refiner_layers=1,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=2,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(64, 16, 16),
        cap_feat_dim=24,
    )
    return transformer, {
        "hidden_states": draw(batch, 4, 2 * HEIGHT, 2 * WIDTH),
        "encoder_hidden_states": draw(batch, TEXT_TOKENS, 24),
        "timestep": half_time(batch),
        "encoder_attention_mask": torch.ones(batch, TEXT_TOKENS, dtype=torch.bool),
    }


def auraflow(draw: Draw, batch: int) -> Made:
    """AuraFlow."""
    from diffusers import AuraFlowTransformer2DModel

    transformer = AuraFlowTransformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=24,
        caption_projection_dim=32,
        out_channels=4,
        pos_embed_max_size=64,
    )
    return transformer, {
        "hidden_states": draw(batch, 4, 2 * HEIGHT, 2 * WIDTH),
        "encoder_hidden_states": draw(batch, TEXT_TOKENS, 24),
        "timestep": half_time(batch),
    }


def ernie_image(draw: Draw, batch: int) -> Made:
    """ERNIE-Image."""
    from diffusers import ErnieImageTransformer2DModel

    transformer = ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=4,
        num_layers=3,
        ffn_hidden_size=40,
        in_channels=4,
        out_channels=4,
        patch_size=1,
        text_in_dim=24,
        rope_axes_dim=(4, 2, 2),
    )
    return transformer, {
        "hidden_states": draw(batch, 4, HEIGHT, WIDTH),
        "text_bth": draw(batch, TEXT_TOKENS, 24),
        "text_lens": torch.full((batch,), TEXT_TOKENS),
        "timestep": torch.full((batch,), 500.0),
    }


def ideogram4(draw: Draw, batch: int) -> Made:
    """Ideogram 4; the text's rows of the latents, and the image's of the text, are not read."""
    from diffusers import Ideogram4Transformer2DModel

    transformer = Ideogram4Transformer2DModel(
        in_channels=16,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        intermediate_size=40,
        adaln_dim=16,
        llm_features_dim=24,
        mrope_section=(2, 1, 1),
    )
    total = TEXT_TOKENS + HEIGHT * WIDTH
    words = torch.arange(TEXT_TOKENS)[:, None].expand(-1, 3)
    places = torch.cat([words, 65536 + image_ids().long()]).expand(batch, -1, -1)
    indicator = torch.tensor([3] * TEXT_TOKENS + [2] * HEIGHT * WIDTH).expand(batch, -1)
    return transformer, {
        "hidden_states": draw(batch, total, 16),
        "encoder_hidden_states": draw(batch, total, 24),
        "timestep": half_time(batch),
        "position_ids": places,
        "segment_ids": torch.ones(batch, total, dtype=torch.long),
        "indicator": indicator,
    }


FAMILIES: dict[str, Make] = {
    "z_image": z_image,
    "krea2": krea2,
    "lumina2": lumina2,
    "auraflow": auraflow,
    "ernie_image": ernie_image,
    "ideogram4": ideogram4,
}
