"""LTXVideoTransformer3DModel: self-attention, cross-attention, MLP, for video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from diffusion_lens.architectures import forms
from diffusion_lens.architectures.spec import DenoiserSpec, TextPart


def grid(_denoiser: nn.Module, arguments: Mapping[str, Any], _level: int) -> tuple[int, ...]:
    """(frames, height, width) in tokens."""
    return tuple(int(arguments[name]) for name in ("num_frames", "height", "width"))


LTX_VIDEO = DenoiserSpec(
    denoiser="LTXVideoTransformer3DModel",
    family="LTX-Video",
    blocks={
        "LTXVideoTransformerBlock": forms.crossed(
            ("attn2", "norm2"),
            gates=forms.chunked(2, 5, 6, argument="temb", table="scale_shift_table"),
            before_rope=("norm_q", "norm_k"),
            heads_joined=True,
        )
    },
    outside=forms.points(("pos", "channel"), embedding="time_embed.emb"),
    latents="hidden_states",
    text="encoder_hidden_states",
    grid=grid,
    default_grid=forms.native(21, 16, 22),
    text_parts=(TextPart("tokenizer"),),
    text_tokens=128,
    to_context=("caption_projection",),
)
