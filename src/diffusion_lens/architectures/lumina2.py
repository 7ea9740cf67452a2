"""Lumina2Transformer2DModel: text and image in one stream behind refiners, norms on both sides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from diffusion_lens.architectures import forms
from diffusion_lens.architectures.forms import TXT_IMG
from diffusion_lens.architectures.spec import ConceptEntry, Concepts, DenoiserSpec, Gate, TextPart


def text_length(_denoiser: nn.Module, arguments: Mapping[str, Any]) -> list[int]:
    """Tokens of each prompt, without its padding."""
    return arguments["encoder_attention_mask"].sum(1).tolist()


def block(*order: str, modulated: bool = True, concepts: Concepts | None = None) -> forms.Block:
    """A block of these streams; refiners of the text are not modulated."""
    gates = (Gate("norm1", 1, activation="tanh"), Gate("norm1", 3, activation="tanh"))
    return forms.sequential(
        order,
        norm="ffn_norm1",
        mlp=("feed_forward", "feed_forward.linear_2"),
        gates=forms.sandwiched(gates if modulated else (None, None), ("norm2", "ffn_norm2")),
        concepts=concepts,
    )


LUMINA2 = DenoiserSpec(
    denoiser="Lumina2Transformer2DModel",
    family="Lumina 2",
    blocks={
        "Lumina2TransformerBlock": block(
            *TXT_IMG,
            concepts=Concepts(positions=forms.placed("image_rotary_emb", *TXT_IMG, axis=1)),
        )
    },
    outside=forms.points(
        ("channel", "height", "width"), embedding="time_caption_embed.timestep_embedder"
    ),
    latents="hidden_states",
    text="encoder_hidden_states",
    grid=forms.grid_of_latents(),
    default_grid=forms.native_patches,
    text_parts=(
        TextPart(
            "tokenizer",
            template=lambda pipe, prompt: f"{pipe.system_prompt} <Prompt Start> {prompt}",
            padded=False,
            negative=TextPart("tokenizer", padded=False),
            assumed=("system_prompt",),
        ),
    ),
    text_tokens=256,
    guidance="calls",
    branches=("cond", "uncond"),
    timestep_scale=-1000.0,
    text_ends_in_last_block=True,
    text_length=text_length,
    refiners={"context_refiner": block("txt", modulated=False), "noise_refiner": block("img")},
    concepts=ConceptEntry(
        ("time_caption_embed.caption_embedder", "context_refiner"),
        positions=forms.placed("image_rotary_emb", "txt", axis=1),
    ),
)
