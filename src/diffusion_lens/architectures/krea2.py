"""Krea2Transformer2DModel: text and image in one stream, grouped queries, gates on z."""

from __future__ import annotations

from typing import Any

from diffusion_lens.architectures import forms
from diffusion_lens.architectures.forms import TXT_IMG
from diffusion_lens.architectures.spec import ConceptEntry, Concepts, DenoiserSpec, TextPart


def _grid(_denoiser, arguments, _level):
    image = arguments["position_ids"][arguments["encoder_hidden_states"].shape[1] :]
    own = image[image[:, 0] == image[0, 0]]
    size = own.amax(0) - own.amin(0) + 1
    return (int(size[1]), int(size[2]))


def heads(attention: Any) -> tuple[int, int]:
    """Number of heads and their width."""
    return attention.num_heads, attention.head_dim


KREA2 = DenoiserSpec(
    denoiser="Krea2Transformer2DModel",
    family="Krea 2",
    blocks={
        "Krea2TransformerBlock": forms.sequential(
            TXT_IMG,
            mlp=("ff", "ff.down"),
            gates=forms.chunked(2, 5, 6, argument="temb", table="scale_shift_table"),
            sizes=heads,
            gated=True,
            concepts=Concepts(positions=forms.placed("image_rotary_emb", *TXT_IMG)),
        )
    },
    outside=forms.points(
        ("pos", "channel"), embedding="time_embed", text_axes=("pos", "layer", "d_text")
    ),
    latents="hidden_states",
    text="encoder_hidden_states",
    grid=_grid,
    grid_from="position_ids",
    default_grid=forms.native(64, 64),
    text_parts=(
        TextPart(
            "tokenizer",
            template=lambda pipe, prompt: pipe.prompt_template_encode_prefix + prompt,
            dropped=lambda pipe: pipe.prompt_template_encode_start_idx,
            reserved=lambda pipe: pipe.prompt_template_encode_num_suffix_tokens,
        ),
    ),
    text_tokens=512,
    guidance="calls",
    branches=("cond", "uncond"),
    timestep_scale=1000.0,
    text_ends_in_last_block=True,
    refiners={
        "text_fusion.refiner_blocks": forms.sequential(
            ("txt",), mlp=("ff", "ff.down"), sizes=heads, gated=True, before_rope=None
        )
    },
    apart={"text_fusion.layerwise_blocks": "the encoder's layers attend there, token by token"},
    concepts=ConceptEntry(("text_fusion", "txt_in")),
)
