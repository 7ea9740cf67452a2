"""Sana and SANA-Video: linear self-attention, cross-attention, a convolutional MLP."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

from torch import nn

from diffusion_lens.architectures import chats, forms
from diffusion_lens.architectures.pixart import PIXART
from diffusion_lens.architectures.spec import BlockSpec, ModulePoint, TextPart

FOLDED = "frames lie in the batch there, and a convolution over them follows"
_VIDEO = forms.crossed(
    ("attn2", "norm2"),
    mlp=("ff", None),
    gates=forms.chunked(2, 5, 6, argument="timestep", table="scale_shift_table"),
    linear=True,
    maps="channel last",
)


def video_block(block: nn.Module) -> BlockSpec:
    """As an image's, without neurons."""
    spec = _VIDEO(block)
    return replace(spec, absent={**spec.absent, "img.mlp.hook_post": FOLDED})


def instruction(pipe: Any) -> str:
    """What the pipeline's class puts before a prompt."""
    usual = inspect.signature(type(pipe).__call__).parameters["complex_human_instruction"].default
    return "\n".join(usual or ())


def instructed(pipe: Any, prompt: str) -> str:
    """The class's instruction, then the prompt."""
    return instruction(pipe) + chats.cleaned(pipe, prompt)


def instruction_tokens(pipe: Any) -> int:
    """Those that are cut away: all but the start and the last, which the prompt may change."""
    return max(len(pipe.tokenizer(instruction(pipe)).input_ids) - 2, 0)


TEXT = TextPart(
    "tokenizer",
    template=instructed,
    dropped=instruction_tokens,
    padded=False,  # behind, whatever the tokenizer says before the first run
    negative=TextPart("tokenizer", template=chats.cleaned, padded=False),
    assumed=("clean_caption", "complex_human_instruction"),
)


def outside(denoiser: Any) -> tuple[ModulePoint, ...]:
    """Latents, embeddings and the prediction; SANA-Sprint embeds guidance beside the timestep."""
    guided = denoiser.config.guidance_embeds
    embedding = "time_embed.timestep_embedder" if guided else "time_embed.emb"
    return forms.points(("channel", "height", "width"), embedding=embedding)(denoiser)


SANA = replace(
    PIXART,
    denoiser="SanaTransformer2DModel",
    family="Sana",
    blocks={
        "SanaTransformerBlock": forms.crossed(
            ("attn2", "norm2"),
            mlp=("ff", "ff.conv_point"),
            gates=forms.chunked(2, 5, 6, argument="timestep", table="scale_shift_table"),
            linear=True,
            maps="channel first",
        )
    },
    outside=outside,
    to_context=("caption_projection", "caption_norm"),
    text_parts=(TEXT,),
)
SANA_VIDEO = replace(
    SANA,
    denoiser="SanaVideoTransformer3DModel",
    family="SANA-Video",
    blocks={"SanaVideoTransformerBlock": video_block},
    outside=forms.points(("channel", "frame", "height", "width"), embedding="time_embed.emb"),
    default_grid=forms.native(21, 30, 52),
)
