"""QwenImageTransformer2DModel: double blocks only, gates cut from one modulation per stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from diffusion_lens.architectures import chats, forms
from diffusion_lens.architectures.forms import IMG_TXT, TXT_IMG
from diffusion_lens.architectures.spec import (
    ConceptEntry,
    Concepts,
    DenoiserSpec,
    TextPart,
)


def grid(_denoiser: nn.Module, arguments: Mapping[str, Any], _level: int) -> tuple[int, ...]:
    """(height, width) in tokens of the first image; further ones are references.

    Where an image and its layers are made (Qwen-Image-Layered), (images, height, width) of all but
    the last, which is the reference.
    """
    shapes = arguments["img_shapes"][0]
    size = tuple(shapes[0][1:])
    layered = arguments.get("additional_t_cond") is not None
    return (len(shapes) - 1, *size) if layered else size


QWEN_IMAGE = DenoiserSpec(
    denoiser="QwenImageTransformer2DModel",
    family="Qwen-Image",
    blocks={
        "QwenImageTransformerBlock": forms.joint(
            TXT_IMG,
            {
                "img": replace(
                    forms.IMAGE,
                    norm="img_norm2",
                    mlp="img_mlp",
                    down="img_mlp.net.2",
                    gates=forms.chunked(2, 5, 6, module="img_mod"),
                    clamped=True,
                ),
                "txt": replace(
                    forms.TEXT,
                    norm="txt_norm2",
                    mlp="txt_mlp",
                    down="txt_mlp.net.2",
                    gates=forms.chunked(2, 5, 6, module="txt_mod"),
                    clamped=True,
                ),
            },
            concepts=Concepts(
                positions={
                    **forms.placed_apart("image_rotary_emb", *IMG_TXT),
                    **forms.placed("modulate_index", "img", axis=1),
                },
                masks=("encoder_hidden_states_mask",),
            ),
        )
    },
    outside=forms.points(("pos", "channel"), embedding="time_text_embed"),
    latents="hidden_states",
    text="encoder_hidden_states",
    grid=grid,
    default_grid=forms.native(64, 64),
    text_parts=(
        TextPart(
            "tokenizer",
            template=chats.filled(),
            dropped=lambda pipe: pipe.prompt_template_encode_start_idx,
            padded=False,
        ),
    ),
    text_tokens=512,
    guidance="calls",
    branches=("cond", "uncond"),
    timestep_scale=1000.0,
    text_ends_in_last_block=True,
    concepts=ConceptEntry(("txt_norm", "txt_in")),
)
