"""A research group's own transformer and its description: Flux's blocks without pooled text."""

from __future__ import annotations

from dataclasses import replace

from diffusers import BriaTransformer2DModel

from diffusion_lens.architectures import forms
from diffusion_lens.architectures.forms import TXT_IMG
from diffusion_lens.architectures.spec import DenoiserSpec, Gate, TextPart


class OwnTransformer2DModel(BriaTransformer2DModel):
    """Stands for a class that diffusers does not have; this one has Bria's parts."""


DOUBLE = forms.joint(
    TXT_IMG,
    {
        "img": replace(forms.IMAGE, gates=forms.adaptive("norm1")),
        "txt": replace(forms.TEXT, gates=forms.adaptive("norm1_context"), clamped=True),
    },
)
SINGLE = forms.parallel(TXT_IMG, "proj_out", Gate("norm", 1), clamped=True)

OWN_TRANSFORMER = DenoiserSpec(
    denoiser="OwnTransformer2DModel",
    family="Our own",
    blocks={"BriaTransformerBlock": DOUBLE, "BriaSingleTransformerBlock": SINGLE},
    outside=forms.points(("pos", "channel"), embedding="time_embed"),
    latents="hidden_states",
    text="encoder_hidden_states",
    grid=forms.grid_of_ids("img_ids"),
    grid_from="img_ids",
    default_grid=forms.native(64, 64),
    order=lambda path: (int(path.startswith("single_")),),  # double blocks run first
    text_parts=(TextPart("tokenizer", padded=False),),
    text_tokens=128,
    guidance="batched",
    branches=("uncond", "cond"),
    text_ends_in_last_block=True,
)
