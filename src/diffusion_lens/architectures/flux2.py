"""Flux2Transformer2DModel: modulation made once for all blocks, single blocks on one sequence."""

from __future__ import annotations

from dataclasses import replace

from diffusion_lens.architectures import chats, forms
from diffusion_lens.architectures.forms import TXT_IMG
from diffusion_lens.architectures.spec import (
    ConceptEntry,
    Concepts,
    DenoiserSpec,
    Gate,
    Kept,
    TextPart,
)

ROPE = forms.placed("image_rotary_emb", *TXT_IMG)

KEPT = Kept(
    mode="kv_cache_mode",
    making="extract",
    using="cached",
    count="num_ref_tokens",
    cache="kv_cache",
    instead="run Flux2KleinPipeline of the same parts with image=",
)

FLUX2 = DenoiserSpec(
    denoiser="Flux2Transformer2DModel",
    family="Flux.2",
    blocks={
        "Flux2TransformerBlock": forms.joint(
            TXT_IMG,
            {
                "img": replace(
                    forms.IMAGE,
                    down="ff.linear_out",
                    gates=forms.chunked(2, 5, 6, argument="temb_mod_img"),
                ),
                "txt": replace(
                    forms.TEXT,
                    down="ff_context.linear_out",
                    gates=forms.chunked(2, 5, 6, argument="temb_mod_txt"),
                    clamped=True,
                ),
            },
            concepts=Concepts(positions=ROPE),
        ),
        "Flux2SingleTransformerBlock": forms.parallel(
            TXT_IMG,
            projection="attn.to_out",
            gate=Gate(index=2, pieces=3, argument="temb_mod"),
            within="hidden_states",
            clamped=True,
            concepts=Concepts(positions=ROPE, by_default=False),
        ),
    },
    outside=forms.points(("pos", "channel"), embedding="time_guidance_embed"),
    latents="hidden_states",
    text="encoder_hidden_states",
    grid=forms.grid_of_ids("img_ids"),
    grid_from="img_ids",
    default_grid=forms.native(64, 64),
    text_parts=(TextPart("tokenizer", template=chats.flux2, bare=True),),
    text_tokens=512,
    guidance="calls",
    branches=("cond", "uncond"),
    timestep_scale=1000.0,
    text_ends_in_last_block=True,
    concepts=ConceptEntry(),
    kept=KEPT,
)
