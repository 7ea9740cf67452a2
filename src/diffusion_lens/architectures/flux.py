"""FluxTransformer2DModel: double blocks with two streams, then parallel single blocks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from diffusion_lens.architectures import forms
from diffusion_lens.architectures.forms import TXT_IMG
from diffusion_lens.architectures.spec import (
    ConceptEntry,
    Concepts,
    DenoiserSpec,
    Gate,
    TextPart,
)

ROPE = forms.placed("image_rotary_emb", *TXT_IMG)


def products(block: Any) -> tuple[str, ...]:
    """The attention to text and image, and one for each image prompt."""
    processor = block.attn.processor
    if "IPAdapter" not in type(processor).__name__:
        return ("",)
    return ("", "ip", *(f"ip{number}" for number in range(2, len(processor.scale) + 1)))


DOUBLE = forms.joint(
    TXT_IMG,
    {
        "img": replace(forms.IMAGE, gates=forms.adaptive("norm1")),
        "txt": replace(forms.TEXT, gates=forms.adaptive("norm1_context"), clamped=True),
    },
    concepts=Concepts(positions=ROPE),
    products=products,
)
SINGLE = forms.parallel(
    TXT_IMG,
    projection="proj_out",
    gate=Gate("norm", 1),
    clamped=True,
    concepts=Concepts(positions=ROPE, by_default=False),
    products=products,
)

FLUX = DenoiserSpec(
    denoiser="FluxTransformer2DModel",
    family="Flux.1",
    blocks={"FluxTransformerBlock": DOUBLE, "FluxSingleTransformerBlock": SINGLE},
    outside=forms.points(
        ("pos", "channel"), embedding="time_text_embed", pooled="pooled_projections"
    ),
    latents="hidden_states",
    text="encoder_hidden_states",
    grid=forms.grid_of_ids("img_ids"),
    grid_from="img_ids",
    default_grid=forms.native(64, 64),
    text_parts=(TextPart("tokenizer_2", prompt="prompt_2"),),
    text_tokens=512,
    guidance="calls",
    branches=("cond", "uncond"),
    timestep_scale=1000.0,
    text_ends_in_last_block=True,
    concepts=ConceptEntry(pooled_argument="pooled_projection", pooled="zeros"),
)
