"""NucleusMoEImageTransformer2DModel: grouped queries on image and text, experts after them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from diffusion_lens.architectures import forms
from diffusion_lens.architectures.forms import IMG_TXT
from diffusion_lens.architectures.qwen_image import QWEN_IMAGE
from diffusion_lens.architectures.spec import BlockSpec, Router, TextPart


def block(module: Any) -> BlockSpec:
    """A block with one MLP, or with experts."""
    gates = forms.chunked(1, 3, 4, module="img_mod", limit=2.0, activation="tanh")
    spec = forms.mixed(
        IMG_TXT,
        attention="attn",
        norm="pre_mlp_norm",
        mlp=("img_mlp", None if module.moe_enabled else "img_mlp.net.2"),
        gates=gates,
        before_rope={"img": ("norm_q", "norm_k"), "txt": (None, "norm_added_k")},
        clamped=True,
    )(module)
    return _with_experts(spec, module.img_mlp) if module.moe_enabled else spec


def _with_experts(spec: BlockSpec, layer: Any) -> BlockSpec:
    router = Router(
        "img_mlp",
        logits="img_mlp.gate",
        chooser="expert",
        scores="sigmoid" if layer.use_sigmoid else "softmax",
    )
    absent = {
        "img.mlp.hook_experts": "experts take tokens here, not tokens experts: hook_expert_tokens",
        "img.mlp.hook_expert_weights": "they are normed over the experts that took a token, in "
        "the midst of the sum",
    }
    return replace(
        spec,
        mlps={"img": replace(spec.mlps["img"], router=router)},
        absent={**spec.absent, **absent},
    )


def filled_up(pipe: Any, count: int) -> int:
    """Padding before a chat, up to a multiple of 8 tokens, where the tokenizer pads in front."""
    return -count % 8 if pipe.processor.tokenizer.padding_side == "left" else 0


NUCLEUS = replace(
    QWEN_IMAGE,
    denoiser="NucleusMoEImageTransformer2DModel",
    family="Nucleus-Image",
    blocks={"NucleusMoEImageTransformerBlock": block},
    grid=lambda _denoiser, arguments, _level: tuple(arguments["img_shapes"][0][1:]),
    text_parts=(
        TextPart(
            "processor",
            template=lambda pipe, text: pipe._format_prompt(text),
            before=filled_up,
            padded=False,
        ),
    ),
    text_tokens=1024,
    text_ends_in_last_block=False,
    concepts=None,
    without_concepts=forms.TEXT_ANSWERS,
)
