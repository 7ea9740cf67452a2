"""ErnieImageTransformer2DModel: one stream with the positions before the batch, image first."""

from __future__ import annotations

from diffusion_lens.architectures import forms
from diffusion_lens.architectures.forms import IMG_TXT
from diffusion_lens.architectures.spec import DenoiserSpec, Gate, TextPart

ERNIE_IMAGE = DenoiserSpec(
    denoiser="ErnieImageTransformer2DModel",
    family="ERNIE-Image",
    blocks={
        "ErnieImageSharedAdaLNBlock": forms.sequential(
            IMG_TXT,
            within="x",
            attention="self_attention",
            norm="adaLN_mlp_ln",
            mlp=("mlp", "mlp.linear_fc2"),
            gates=(Gate(index=2, argument="temb"), Gate(index=5, argument="temb")),
            positions_first=True,
        )
    },
    outside=forms.points(
        ("channel", "height", "width"),
        embedding="time_embedding",
        names=("hidden_states", "text_bth"),
    ),
    latents="hidden_states",
    text="text_bth",
    grid=forms.grid_of_latents(),
    default_grid=forms.native(64, 64),
    text_parts=(TextPart("tokenizer", padded=False),),
    text_tokens=512,
    text_ends_in_last_block=True,
    without_concepts=forms.TEXT_UNKNOWN,
)
