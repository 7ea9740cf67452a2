"""AuraFlowTransformer2DModel: attention that goes into the MLP alone, and register tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from diffusion_lens.architectures import forms
from diffusion_lens.architectures.forms import TXT_IMG
from diffusion_lens.architectures.spec import (
    BlockSpec,
    ConceptEntry,
    Concepts,
    DenoiserSpec,
    ModulePoint,
    TextPart,
)

GATES = forms.adaptive("norm1")
_JOINT = forms.joint(
    TXT_IMG,
    {
        "img": replace(forms.IMAGE, down="ff.out_projection", gates=GATES, before_rope=None),
        "txt": replace(
            forms.TEXT,
            down="ff_context.out_projection",
            gates=forms.adaptive("norm1_context"),
            before_rope=None,
        ),
    },
    concepts=Concepts(),
)


def joint_block(block: nn.Module) -> BlockSpec:
    """As `forms.joint`, but attention is not added to the streams."""
    spec = _JOINT(block)
    streams = {
        name: replace(stream, mids=tuple(replace(mid, beside=True) for mid in stream.mids))
        for name, stream in spec.streams.items()
    }
    return replace(spec, streams=streams)


def text_length(denoiser: Any, arguments: Mapping[str, Any]) -> list[int]:
    """Tokens of the text, behind the register tokens."""
    return [denoiser.register_tokens.shape[1] + arguments["encoder_hidden_states"].shape[1]]


def outside(denoiser: Any) -> tuple[ModulePoint, ...]:
    """As `forms.points`; the text is given without the registers that stand before it later."""
    registers = denoiser.register_tokens.shape[1]
    found = forms.points(("channel", "height", "width"), embedding="time_step_proj")(denoiser)
    return tuple(
        replace(point, skipped=registers) if point.name == "hook_text_emb" else point
        for point in found
    )


AURAFLOW = DenoiserSpec(
    denoiser="AuraFlowTransformer2DModel",
    family="AuraFlow",
    blocks={
        "AuraFlowJointTransformerBlock": joint_block,
        "AuraFlowSingleTransformerBlock": forms.sequential(
            TXT_IMG,
            mlp=("ff", "ff.out_projection"),
            gates=GATES,
            before_rope=None,
            beside=True,
            concepts=Concepts(by_default=False),
        ),
    },
    outside=outside,
    latents="hidden_states",
    text="encoder_hidden_states",
    grid=forms.grid_of_latents(),
    default_grid=forms.native_patches,
    text_parts=(
        TextPart("tokenizer", before=lambda pipe, _: pipe.transformer.register_tokens.shape[1]),
    ),
    text_tokens=256,
    timestep_scale=1000.0,
    text_ends_in_last_block=True,
    text_length=text_length,
    concepts=ConceptEntry(),
)
