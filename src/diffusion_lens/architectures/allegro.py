"""AllegroTransformer3DModel: PixArt's blocks for video, with rotary embedding."""

from __future__ import annotations

from dataclasses import replace

from diffusion_lens.architectures import forms
from diffusion_lens.architectures.pixart import PIXART

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
    outside=forms.points(("channel", "frame", "height", "width"), embedding="adaln_single.emb"),
    default_grid=forms.native(22, 45, 80),
    text_tokens=512,
)
