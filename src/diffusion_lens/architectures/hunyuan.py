"""HunyuanVideo and HunyuanImage: Flux's blocks with the image before the text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from diffusion_lens.architectures import chats, forms
from diffusion_lens.architectures.forms import IMG_TXT
from diffusion_lens.architectures.spec import DenoiserSpec, Gate, TextPart

REFINED = "the text is refined before it meets the image"
DOUBLE = forms.joint(
    IMG_TXT,
    {
        "img": replace(forms.IMAGE, gates=forms.adaptive("norm1")),
        "txt": replace(forms.TEXT, gates=forms.adaptive("norm1_context")),
    },
    returns=IMG_TXT,
)
SINGLE = forms.parallel(IMG_TXT, projection="proj_out", gate=Gate("norm", 1), returns=IMG_TXT)


def with_glyphs(denoiser: Any, arguments: Mapping[str, Any]) -> list[int]:
    """Number of text tokens of each sample, those of quoted words among them."""
    kinds = [arguments["encoder_hidden_states"], arguments.get("encoder_hidden_states_2")]
    kinds = kinds[: 1 if denoiser.context_embedder_2 is None else 2]
    return [sum(kind.shape[1] for kind in kinds if kind is not None)] * len(kinds[0])


HUNYUAN_VIDEO = DenoiserSpec(
    denoiser="HunyuanVideoTransformer3DModel",
    family="HunyuanVideo",
    blocks={
        "HunyuanVideoTransformerBlock": DOUBLE,
        "HunyuanVideoSingleTransformerBlock": SINGLE,
    },
    outside=forms.points(
        ("channel", "frame", "height", "width"),
        embedding="time_text_embed",
        pooled="pooled_projections",
    ),
    latents="hidden_states",
    text="encoder_hidden_states",
    grid=forms.grid_of_latents(),
    default_grid=forms.native(33, 45, 80),
    text_parts=(TextPart("tokenizer"),),
    text_tokens=256,
    guidance="calls",
    branches=("cond", "uncond"),
    text_ends_in_last_block=True,
    apart={"context_embedder": REFINED},
)
HUNYUAN_IMAGE = replace(
    HUNYUAN_VIDEO,
    denoiser="HunyuanImageTransformer2DModel",
    family="HunyuanImage 2.1",
    blocks={
        "HunyuanImageTransformerBlock": DOUBLE,
        "HunyuanImageSingleTransformerBlock": SINGLE,
    },
    outside=forms.points(("channel", "height", "width"), embedding="time_guidance_embed"),
    default_grid=forms.native(64, 64),
    text_parts=(
        TextPart(
            "tokenizer",
            template=chats.without_glyphs,
            dropped=lambda pipe: pipe.prompt_template_encode_start_idx,
        ),
    ),
    text_length=with_glyphs,
    text_tokens=1000,
)
HUNYUAN_VIDEO_15 = replace(
    HUNYUAN_VIDEO,
    denoiser="HunyuanVideo15Transformer3DModel",
    family="HunyuanVideo 1.5",
    blocks={"HunyuanVideo15TransformerBlock": DOUBLE},
    outside=forms.points(("channel", "frame", "height", "width"), embedding="time_embed"),
    default_grid=forms.native(31, 30, 53),
    text_tokens=1985,
)
