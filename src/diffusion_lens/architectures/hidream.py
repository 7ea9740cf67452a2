"""HiDreamImageTransformer2DModel: a layer of Llama beside the text in every block, and experts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from diffusion_lens.architectures import forms
from diffusion_lens.architectures.forms import IMG_TXT, Own
from diffusion_lens.architectures.spec import BlockSpec, DenoiserSpec, Router, TextPart


def double_block(block: Any) -> BlockSpec:
    """Image and text with weights of their own; the image's MLP may be a mixture of experts."""
    spec = forms.joint(
        IMG_TXT,
        {
            "img": Own(
                "attn1.to_out",
                "norm3_i",
                "ff_i",
                image_neurons(block),
                forms.chunked(2, 5, 12, module="adaLN_modulation"),
                ("attn1.q_rms_norm", "attn1.k_rms_norm"),
            ),
            "txt": Own(
                "attn1.to_out_t",
                "norm3_t",
                "ff_t",
                "ff_t.w2",
                forms.chunked(8, 11, 12, module="adaLN_modulation"),
                ("attn1.q_rms_norm_t", "attn1.k_rms_norm_t"),
            ),
        },
        returns=IMG_TXT,
        attention="attn1",
        heads_joined=True,
    )(block)
    return _with_experts(spec)


def single_block(block: Any) -> BlockSpec:
    """Both with the same weights, the image first."""
    spec = forms.sequential(
        IMG_TXT,
        attention="attn1",
        norm="norm3_i",
        mlp=("ff_i", image_neurons(block)),
        gates=forms.chunked(2, 5, 6, module="adaLN_modulation"),
        before_rope=("q_rms_norm", "k_rms_norm"),
        projection="to_out",
        heads_joined=True,
    )(block)
    return _with_experts(spec)


def image_neurons(block: Any) -> str | None:
    """The last layer of the image's MLP; none where there are experts."""
    return None if hasattr(block.ff_i, "experts") else "ff_i.w2"


def _with_experts(spec: BlockSpec) -> BlockSpec:
    experts = {name for name, mlp in spec.mlps.items() if mlp.down is None}
    mlps = {
        name: replace(mlp, router=Router("ff_i.gate", weights=1)) if name in experts else mlp
        for name, mlp in spec.mlps.items()
    }
    absent = {f"{name}.mlp.hook_post": forms.EXPERTS for name in mlps if name in experts}
    return replace(spec, mlps=mlps, absent=absent)


def grid(denoiser: Any, arguments: Mapping[str, Any], _level: int) -> tuple[int, ...]:
    """(height, width) in tokens; behind an image that is not square come tokens that fill up."""
    if arguments.get("img_sizes") is not None:
        return tuple(int(size) for size in arguments["img_sizes"][0])
    patch = denoiser.config.patch_size
    return tuple(size // patch for size in arguments["hidden_states"].shape[-2:])


def image_length(denoiser: Any, arguments: Mapping[str, Any]) -> int:
    """Tokens of the image and those that fill it up."""
    latents = arguments["hidden_states"]
    if latents.ndim == 3:
        return latents.shape[1]
    square = latents.shape[-1] == latents.shape[-2]
    return math.prod(grid(denoiser, arguments, 0)) if square else denoiser.max_seq


def text_length(_denoiser: nn.Module, arguments: Mapping[str, Any]) -> list[int]:
    """T5's tokens, those of Llama's last layer, and those of the layer that the block is given."""
    llama = arguments["encoder_hidden_states_llama3"][0].shape[1]
    return [arguments["encoder_hidden_states_t5"].shape[1] + 2 * llama]


def next_layer(_denoiser: nn.Module, _block: int) -> Mapping[str, str]:
    """The last third of the text is new in every block."""
    return {"txt": "its last third is replaced by a layer of Llama"}


HIDREAM = DenoiserSpec(
    denoiser="HiDreamImageTransformer2DModel",
    family="HiDream-I1",
    blocks={
        "HiDreamImageTransformerBlock": double_block,
        "HiDreamImageSingleTransformerBlock": single_block,
    },
    outside=forms.points(
        ("channel", "height", "width"),
        embedding="t_embedder",
        pooled="pooled_embeds",
        names=("hidden_states", "encoder_hidden_states_t5"),
        text_axes=("token", "d_text"),  # T5's alone: words are those of the whole stream
    ),
    latents="hidden_states",
    text="encoder_hidden_states_t5",
    text_beside=("encoder_hidden_states_llama3",),
    batch_second=("encoder_hidden_states_llama3",),
    grid=grid,
    default_grid=forms.native(64, 64),
    text_parts=(
        TextPart("tokenizer_3", prompt="prompt_3"),
        TextPart("tokenizer_4", prompt="prompt_4"),
        TextPart("tokenizer_4", prompt="prompt_4"),
    ),
    text_tokens=384,
    text_ends_in_last_block=True,
    text_length=text_length,
    image_length=image_length,
    timestep="timesteps",
    between=next_layer,
    without_concepts="the last third of every block's text is new from a layer of Llama",
)
