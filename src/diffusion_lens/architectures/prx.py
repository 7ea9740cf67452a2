"""PRXTransformer2DModel: the image reads itself and the text in one attention."""

from __future__ import annotations

from diffusion_lens.architectures import forms
from diffusion_lens.architectures.forms import TXT_IMG
from diffusion_lens.architectures.spec import DenoiserSpec, TextPart

PRX = DenoiserSpec(
    denoiser="PRXTransformer2DModel",
    family="PRX",
    blocks={
        "PRXBlock": forms.mixed(
            TXT_IMG,
            attention="attention",
            norm="post_attention_layernorm",
            mlp=("down_proj", "down_proj"),
            gates=forms.chunked(2, 5, 6, module="modulation.lin"),
            before_rope={"img": ("norm_q", "norm_k")},
            heads_first=True,
        )
    },
    outside=forms.points(("channel", "height", "width"), embedding="time_in"),
    latents="hidden_states",
    text="encoder_hidden_states",
    grid=forms.grid_of_latents(),
    default_grid=forms.native(32, 32),
    text_parts=(
        TextPart(
            "tokenizer",
            template=lambda pipe, prompt: pipe.text_preprocessor.clean_text(prompt),
            assumed=("skip_text_cleaning", "tokenizer_max_length"),
        ),
    ),
    text_tokens=256,
    timestep_scale=1000.0,
    without_concepts=forms.TEXT_ANSWERS,
)
