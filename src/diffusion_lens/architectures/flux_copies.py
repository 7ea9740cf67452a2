"""Families made after Flux.1: Chroma, Bria, LongCat-Image, Ovis-Image."""

from __future__ import annotations

from dataclasses import replace

from diffusion_lens.architectures import chats, forms
from diffusion_lens.architectures.flux import DOUBLE, FLUX, ROPE, SINGLE
from diffusion_lens.architectures.forms import TXT_IMG
from diffusion_lens.architectures.spec import ConceptEntry, Concepts, Gate, TextPart

T5 = (TextPart("tokenizer"),)

CHROMA = replace(
    FLUX,
    denoiser="ChromaTransformer2DModel",
    family="Chroma",
    blocks={
        "ChromaTransformerBlock": DOUBLE,
        "ChromaSingleTransformerBlock": forms.parallel(
            TXT_IMG,
            "proj_out",
            Gate("norm", 1),
            within="hidden_states",
            clamped=True,
            concepts=Concepts(positions=ROPE, by_default=False),
        ),
    },
    outside=forms.points(("pos", "channel"), embedding="distilled_guidance_layer"),
    text_parts=T5,
    concepts=ConceptEntry(),
)
BRIA = replace(
    FLUX,
    denoiser="BriaTransformer2DModel",
    family="Bria 3",
    blocks={"BriaTransformerBlock": DOUBLE, "BriaSingleTransformerBlock": SINGLE},
    outside=forms.points(("pos", "channel"), embedding="time_embed"),
    text_parts=(TextPart("tokenizer", padded=False),),  # the pipeline fills up by itself, behind
    text_tokens=128,
    guidance="batched",
    branches=("uncond", "cond"),
    timestep_scale=1.0,
    concepts=ConceptEntry(),
)
LONGCAT = replace(
    FLUX,
    denoiser="LongCatImageTransformer2DModel",
    family="LongCat-Image",
    blocks={
        "LongCatImageTransformerBlock": DOUBLE,
        "LongCatImageSingleTransformerBlock": SINGLE,
    },
    outside=forms.points(("pos", "channel"), embedding="time_embed"),
    grid=forms.grid_of_ids("img_ids", shifted=True),
    text_parts=(TextPart("tokenizer", pieces=chats.quoted_apart, bare=True),),
    concepts=ConceptEntry(),
)
OVIS = replace(
    LONGCAT,
    grid=FLUX.grid,
    denoiser="OvisImageTransformer2DModel",
    family="Ovis-Image",
    blocks={"OvisImageTransformerBlock": DOUBLE, "OvisImageSingleTransformerBlock": SINGLE},
    outside=forms.points(("pos", "channel"), embedding="timestep_embedder"),
    text_parts=(
        TextPart(
            "tokenizer",
            template=chats.question(attribute="system_prompt", enable_thinking=False),
            dropped=lambda pipe: pipe.user_prompt_begin_id,
            bare=True,
        ),
    ),
    concepts=ConceptEntry(("context_embedder_norm", "context_embedder")),
)
