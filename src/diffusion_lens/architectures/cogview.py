"""CogView 3+, CogView 4 and GLM-Image: text and image share all weights but the modulation's."""

from __future__ import annotations

from dataclasses import replace

from diffusion_lens.architectures import forms
from diffusion_lens.architectures.forms import IMG_TXT
from diffusion_lens.architectures.spec import (
    ConceptEntry,
    Concepts,
    DenoiserSpec,
    Gate,
    Mid,
    TextPart,
)

MIDS = {
    "img": Mid("resid_mid", "norm2", ("attn",)),
    "txt": Mid("resid_mid", "norm2_context", ("attn",)),
}
GATES = {
    "img": (Gate("norm1", 1), Gate("norm1", 4)),
    "txt": (Gate("norm1", 6), Gate("norm1", 9)),
}

COGVIEW3_PLUS = DenoiserSpec(
    denoiser="CogView3PlusTransformer2DModel",
    family="CogView 3+",
    blocks={
        "CogView3PlusTransformerBlock": forms.shared(
            MIDS, GATES, before_rope=None, clamped=True, concepts=Concepts()
        )
    },
    outside=forms.points(("channel", "height", "width"), embedding="time_condition_embed"),
    latents="hidden_states",
    text="encoder_hidden_states",
    grid=forms.grid_of_latents(),
    default_grid=forms.native_patches,
    text_parts=(TextPart("tokenizer"),),
    text_tokens=224,
    text_ends_in_last_block=True,
    concepts=ConceptEntry(("patch_embed.text_proj",)),
)
COGVIEW4 = replace(
    COGVIEW3_PLUS,
    denoiser="CogView4Transformer2DModel",
    family="CogView 4",
    blocks={
        "CogView4TransformerBlock": forms.shared(
            MIDS,
            GATES,
            calls=IMG_TXT,
            concepts=Concepts(positions=forms.placed("image_rotary_emb", "img")),
        )
    },
    text_parts=(TextPart("tokenizer", padded=False, before=lambda _, count: -count % 16),),
    text_tokens=1024,
    guidance="calls",
    branches=("cond", "uncond"),
)
GLM_IMAGE = replace(
    COGVIEW4,
    denoiser="GlmImageTransformer2DModel",
    family="GLM-Image",
    blocks={
        "GlmImageTransformerBlock": forms.shared(MIDS, GATES, calls=IMG_TXT, heads_first=False)
    },
    default_grid=forms.native(64, 64),
    concepts=None,
    without_concepts="its text stream holds the glyphs of quoted words, and not the prompt",
)
