"""AllegroTransformer3DModel: PixArt's blocks for video, with rotary embedding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from diffusion_lens.architectures import forms
from diffusion_lens.architectures.pixart import PIXART


def text_length(_denoiser: nn.Module, arguments: Mapping[str, Any]) -> list[int]:
    """Tokens of the text, which the pipeline gives an axis more (batch, 1, pos, d_text)."""
    return [arguments["encoder_hidden_states"].shape[-2]]


ALLEGRO = replace(
    PIXART,
    denoiser="AllegroTransformer3DModel",
    family="Allegro",
    blocks={
        "AllegroTransformerBlock": forms.crossed(
            ("attn2", "norm2"),
            gates=forms.chunked(2, 5, 6, argument="temb", table="scale_shift_table"),
            before_rope=("to_q", "to_k"),
            heads_joined=True,
        )
    },
    outside=forms.points(
        ("channel", "frame", "height", "width"),
        embedding="adaln_single.emb",
        text_axes=("prompt", "pos", "d_text"),
    ),
    text_length=text_length,
    default_grid=forms.native(22, 45, 80),
    text_tokens=512,
)
