"""SanaTransformer2DModel: linear self-attention, cross-attention, a convolutional MLP."""

from __future__ import annotations

from dataclasses import replace

from diffusion_lens.architectures import forms
from diffusion_lens.architectures.pixart import PIXART

SANA = replace(
    PIXART,
    denoiser="SanaTransformer2DModel",
    family="Sana",
    blocks={
        "SanaTransformerBlock": forms.crossed(
            ("attn2", "norm2"),
            mlp=("ff", "ff.conv_point"),
            gates=forms.chunked(2, 5, 6, argument="timestep", table="scale_shift_table"),
            linear=True,
            maps=True,
        )
    },
    outside=forms.points(("channel", "height", "width"), embedding="time_embed.emb"),
)
