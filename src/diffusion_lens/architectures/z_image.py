"""ZImageTransformer2DModel: image and text in one stream behind refiners, samples in lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from diffusion_lens.architectures import chats, forms
from diffusion_lens.architectures.forms import IMG_TXT
from diffusion_lens.architectures.spec import ConceptEntry, Concepts, DenoiserSpec, TextPart

MULTIPLE = 32
REFERENCES = "it refines reference images, with which evaluations are not described"


def grid(_denoiser: nn.Module, arguments: Mapping[str, Any], _level: int) -> tuple[int, ...]:
    """(height, width) in tokens."""
    patch = arguments.get("patch_size", 2)
    return tuple(size // patch for size in arguments["x"][0].shape[-2:])


def text_length(_denoiser: nn.Module, arguments: Mapping[str, Any]) -> list[int]:
    """Tokens of each caption, filled up to whole multiples of 32 by tokens that are attended to."""
    return [-(-len(caption) // MULTIPLE) * MULTIPLE for caption in arguments["cap_feats"]]


def block(*order: str, modulated: bool = True, concepts: Concepts | None = None) -> forms.Block:
    """A block of these streams; refiners of the text are not modulated."""
    gates = forms.chunked(1, 3, 4, module="adaLN_modulation", activation="tanh")
    return forms.sequential(
        order,
        within="x",
        attention="attention",
        norm="ffn_norm1",
        mlp=("feed_forward", "feed_forward.w2"),
        gates=forms.sandwiched(
            gates if modulated else (None, None), ("attention_norm2", "ffn_norm2")
        ),
        concepts=concepts,
    )


Z_IMAGE = DenoiserSpec(
    denoiser="ZImageTransformer2DModel",
    family="Z-Image",
    blocks={
        "ZImageTransformerBlock": block(
            *IMG_TXT,
            concepts=Concepts(
                positions=forms.placed("freqs_cis", *IMG_TXT, axis=1), masks=("attn_mask",)
            ),
        )
    },
    outside=forms.points(
        ("channel", "frame", "height", "width"), embedding="t_embedder", names=("x", "cap_feats")
    ),
    latents="x",
    text="cap_feats",
    grid=grid,
    default_grid=forms.native(64, 64),
    text_parts=(
        TextPart("tokenizer", template=chats.question(enable_thinking=True), padded=False),
    ),
    text_tokens=512,
    text_length=text_length,
    branches=("cond", "uncond"),
    timestep="t",
    timestep_scale=-1000.0,
    text_ends_in_last_block=True,
    refiners={"noise_refiner": block("img"), "context_refiner": block("txt", modulated=False)},
    apart={"siglip_refiner": REFERENCES},
    concepts=ConceptEntry(
        ("cap_embedder", "context_refiner"),
        positions=forms.placed("freqs_cis", "txt", axis=1),
        masks=("attn_mask",),
    ),
)
