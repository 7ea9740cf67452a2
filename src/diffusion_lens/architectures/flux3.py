"""Flux3Transformer2DModel: attention and MLP side by side, on text and image together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from diffusion_lens.architectures import forms
from diffusion_lens.architectures.flux2 import FLUX2
from diffusion_lens.architectures.forms import ARGUMENTS, TXT_IMG
from diffusion_lens.architectures.spec import (
    Attention,
    BlockSpec,
    Gate,
    Mlp,
    Projection,
    Stream,
    TextPart,
)

GATES = {
    "img": Gate(index=2, pieces=3, argument="temb_mod"),
    "txt": Gate(index=2, pieces=3, argument="temb_mod_context"),
}
ALONE = "each kind of token passes blocks of its own before they meet"


def single_block(_block: nn.Module) -> BlockSpec:
    """All weights in common but those of the modulation."""
    attention = Attention(
        name="attn",
        module="attn",
        queries=TXT_IMG,
        keys=TXT_IMG,
        projections=dict.fromkeys(TXT_IMG, Projection("attn.to_out.0", TXT_IMG)),
        gates=GATES,
        before_rope=dict.fromkeys(TXT_IMG, ("attn.norm_q", "attn.norm_k")),
    )
    return BlockSpec(
        streams={
            name: Stream(ARGUMENTS[name], TXT_IMG.index(name), updates=("attn", "mlp"))
            for name in TXT_IMG
        },
        attentions=(attention,),
        mlps={name: Mlp("ff", "ff.linear_out", gate, TXT_IMG) for name, gate in GATES.items()},
        absent={f"{name}.hook_resid_mid": forms.PARALLEL for name in TXT_IMG},
    )


def chat(pipe: Any, prompt: str) -> str:
    """The prompt as a user's message."""
    message = {"role": "user", "content": prompt}
    return pipe.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)


def grid(_denoiser: nn.Module, arguments: Mapping[str, Any], _level: int) -> tuple[int, ...]:
    """(height, width) in tokens; their ids (0, row, column, 0) count by halves."""
    ids = arguments["img_ids"]
    rows, columns = (ids[..., axis].unique().numel() for axis in (1, 2))
    return (rows, columns)


def image_length(_denoiser: nn.Module, arguments: Mapping[str, Any]) -> int:
    """Tokens of the image and of references, which follow it."""
    references = arguments.get("image_cond_hidden_states")
    return arguments["hidden_states"].shape[1] + (0 if references is None else references.shape[1])


FLUX3 = replace(
    FLUX2,
    denoiser="Flux3Transformer2DModel",
    family="Flux.3",
    blocks={"Flux3SingleTransformerBlock": single_block},
    # The embedding is made twice, for the image's timestep and for 0, and then differs by token.
    outside=forms.points(("pos", "channel"), embedding=None),
    text_parts=(TextPart("tokenizer", template=chat, padded=False),),
    grid=grid,
    image_length=image_length,
    apart=dict.fromkeys(("mode_blocks", "txt_mode_blocks"), ALONE),
    concepts=None,
    without_concepts=forms.TEXT_UNKNOWN,
)
