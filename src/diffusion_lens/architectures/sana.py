"""Sana and SANA-Video: linear self-attention, cross-attention, a convolutional MLP."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from diffusion_lens.architectures import forms
from diffusion_lens.architectures.pixart import PIXART
from diffusion_lens.architectures.spec import BlockSpec

FOLDED = "frames lie in the batch there, and a convolution over them follows"
_VIDEO = forms.crossed(
    ("attn2", "norm2"),
    mlp=("ff", None),
    gates=forms.chunked(2, 5, 6, argument="timestep", table="scale_shift_table"),
    linear=True,
    maps="channel last",
)


def video_block(block: nn.Module) -> BlockSpec:
    """As an image's, without neurons."""
    spec = _VIDEO(block)
    return replace(spec, absent={**spec.absent, "img.mlp.hook_post": FOLDED})


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
            maps="channel first",
        )
    },
    outside=forms.points(("channel", "height", "width"), embedding="time_embed.emb"),
    to_context=("caption_projection", "caption_norm"),
)
SANA_VIDEO = replace(
    SANA,
    denoiser="SanaVideoTransformer3DModel",
    family="SANA-Video",
    blocks={"SanaVideoTransformerBlock": video_block},
    outside=forms.points(("channel", "frame", "height", "width"), embedding="time_embed.emb"),
    default_grid=forms.native(21, 30, 52),
)
