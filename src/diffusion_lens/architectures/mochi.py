"""MochiTransformer3DModel: image and text of different width, tokens of padding dropped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from diffusion_lens.architectures import forms
from diffusion_lens.architectures.forms import IMG_TXT
from diffusion_lens.architectures.spec import (
    Attention,
    BlockSpec,
    DenoiserSpec,
    Gate,
    Mid,
    Mlp,
    Projection,
    Stream,
    TextPart,
)

MASK = "encoder_attention_mask"
TEXT_ENDS = "the last block hands its text stream on as it came (context_pre_only)"
ABSENT = (
    *(f"txt.hook_{name}" for name in ("resid_mid", "attn_out", "attn_update")),
    *(f"txt.{name}" for name in ("hook_mlp_out", "hook_mlp_update", "mlp.hook_post")),
    *(f"attn.txt.hook_{name}" for name in ("z", "result")),
)


def block(module: nn.Module) -> BlockSpec:
    """Joint attention of [img, txt]; the gates are factors of the norms behind the sublayers."""
    ends = bool(module.context_pre_only)
    written = ("img",) if ends else IMG_TXT
    tails = {"img": "", "txt": "_context"}
    projections = {"img": "attn1.to_out.0", "txt": "attn1.to_add_out"}
    attention = Attention(
        "attn",
        "attn1",
        IMG_TXT,
        IMG_TXT,
        {name: Projection(projections[name], (name,)) for name in written},
        outputs={name: IMG_TXT.index(name) for name in written},
        gates={name: Gate(norm=f"norm2{tails[name]}") for name in written},
        before_rope={
            "img": ("attn1.norm_q", "attn1.norm_k"),
            "txt": ("attn1.norm_added_q", "attn1.norm_added_k"),
        },
        kept=MASK,
    )
    streams = {
        name: Stream(
            forms.ARGUMENTS[name],
            IMG_TXT.index(name),
            (Mid("resid_mid", f"norm3{tails[name]}", ("attn",)),),
        )
        for name in written
    }
    mlps = {
        name: Mlp(f"ff{tail}", f"ff{tail}.net.2", Gate(norm=f"norm4{tail}"))
        for name, tail in tails.items()
        if name in written
    }
    if not ends:
        return BlockSpec(streams, (attention,), mlps)
    streams["txt"] = Stream("encoder_hidden_states", 1, updates=())
    return BlockSpec(streams, (attention,), mlps, dict.fromkeys(ABSENT, TEXT_ENDS))


def grid(denoiser: Any, arguments: Mapping[str, Any], _level: int) -> tuple[int, ...]:
    """(frames, height, width) in patches, which hold one frame each."""
    frames, *sides = arguments["hidden_states"].shape[2:]
    return (frames, *(side // denoiser.config.patch_size for side in sides))


MOCHI = DenoiserSpec(
    denoiser="MochiTransformer3DModel",
    family="Mochi",
    blocks={"MochiTransformerBlock": block},
    outside=forms.points(
        ("channel", "frame", "height", "width"), embedding="time_embed.timestep_embedder"
    ),
    latents="hidden_states",
    text="encoder_hidden_states",
    grid=grid,
    default_grid=forms.native(4, 30, 53),
    text_parts=(TextPart("tokenizer"),),
    text_tokens=256,
    text_ends_in_last_block=True,
    without_concepts="its attention takes a sample's tokens by a mask, which concepts have none of",
    apart={"time_embed.pooler": "it pools the text into what modulates the image"},
    pooled={"encoder_hidden_states": "time_embed.pooler"},
)
