"""PixArtTransformer2DModel: self-attention, cross-attention, MLP; gates from a table."""

from __future__ import annotations

from typing import Any

from diffusion_lens.architectures import chats, forms
from diffusion_lens.architectures.spec import DenoiserSpec, TextPart


def default_grid(transformer: Any, _level: int) -> tuple[int, ...]:
    """(height, width) in patches at the native size."""
    side = transformer.config.sample_size // transformer.config.patch_size
    return (side, side)


PIXART = DenoiserSpec(
    denoiser="PixArtTransformer2DModel",
    family="PixArt",
    blocks={
        "BasicTransformerBlock": forms.crossed(
            ("attn2", "norm2"),
            gates=forms.chunked(2, 5, 6, argument="timestep", table="scale_shift_table"),
        )
    },
    outside=forms.points(("channel", "height", "width"), embedding="adaln_single.emb"),
    latents="hidden_states",
    text="encoder_hidden_states",
    grid=forms.grid_of_latents(),
    default_grid=default_grid,
    text_parts=(TextPart("tokenizer", template=chats.cleaned, assumed=("clean_caption",)),),
    text_tokens=300,
    to_context=("caption_projection",),
)
