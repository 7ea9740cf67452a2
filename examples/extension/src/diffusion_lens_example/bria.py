"""BriaTransformer2DModel: Flux's blocks without pooled text, with both branches in one batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from diffusion_lens.architectures.spec import (
    Attention,
    BlockSpec,
    DenoiserSpec,
    Gate,
    Mid,
    Mlp,
    ModulePoint,
    Projection,
    Stream,
    TextPart,
)

JOINT = ("txt", "img")  # the order in which the model joins the streams


def double_block(_block: nn.Module) -> BlockSpec:
    """Joint attention, with weights of its own for each stream."""
    attention = Attention(
        name="attn",
        module="attn",
        queries=JOINT,
        keys=JOINT,
        projections={
            "img": Projection("attn.to_out.0", ("img",)),
            "txt": Projection("attn.to_add_out", ("txt",)),
        },
        outputs={"img": 0, "txt": 1},
        gates={"img": Gate("norm1", 1), "txt": Gate("norm1_context", 1)},
        before_rope={
            "img": ("attn.norm_q", "attn.norm_k"),
            "txt": ("attn.norm_added_q", "attn.norm_added_k"),
        },
    )
    return BlockSpec(
        streams={
            "img": Stream("hidden_states", 1, (Mid("resid_mid", "norm2", ("attn",)),)),
            "txt": Stream(
                "encoder_hidden_states", 0, (Mid("resid_mid", "norm2_context", ("attn",)),)
            ),
        },
        attentions=(attention,),
        mlps={
            "img": Mlp("ff", "ff.net.2", Gate("norm1", 4)),
            "txt": Mlp("ff_context", "ff_context.net.2", Gate("norm1_context", 4)),
        },
    )


def single_block(_block: nn.Module) -> BlockSpec:
    """Attention and MLP in parallel on the joined sequence, one projection for both."""
    projection = Projection("proj_out", JOINT, fused=True)
    gate = Gate("norm", 1)
    attention = Attention(
        name="attn",
        module="attn",
        queries=JOINT,
        keys=JOINT,
        projections=dict.fromkeys(JOINT, projection),
        gates=dict.fromkeys(JOINT, gate),
        before_rope=dict.fromkeys(JOINT, ("attn.norm_q", "attn.norm_k")),
    )
    reason = "attention and MLP run in parallel here, nothing lies between them"
    return BlockSpec(
        streams={
            "img": Stream("hidden_states", 1, updates=("attn", "mlp")),
            "txt": Stream("encoder_hidden_states", 0, updates=("attn", "mlp")),
        },
        attentions=(attention,),
        mlps={stream: Mlp(None, "proj_out", gate) for stream in JOINT},
        absent={f"{stream}.hook_resid_mid": reason for stream in JOINT},
    )


def outside(_transformer: nn.Module) -> tuple[ModulePoint, ...]:
    """Packed latents, embeddings and the prediction."""
    packed, text = ("batch", "pos", "channel"), ("batch", "pos", "d_text")
    return (
        ModulePoint("hook_latents", packed, "", argument=("hidden_states",), stream="img"),
        ModulePoint("hook_timestep_emb", ("batch", "d_emb"), "time_embed"),
        ModulePoint("hook_text_emb", text, "", argument=("encoder_hidden_states",), stream="txt"),
        ModulePoint("hook_noise_pred", packed, "", output=0, stream="img"),
    )


def grid(_transformer: nn.Module, arguments: Mapping[str, Any], _level: int) -> tuple[int, ...]:
    """(height, width) in tokens, from the position ids."""
    ids = arguments["img_ids"].reshape(-1, arguments["img_ids"].shape[-1]).amax(0)
    return (int(ids[1]) + 1, int(ids[2]) + 1)


BRIA = DenoiserSpec(
    denoiser="BriaTransformer2DModel",
    family="Bria 3",
    blocks={
        "BriaTransformerBlock": double_block,
        "BriaSingleTransformerBlock": single_block,
    },
    order=lambda path: (int(path.startswith("single_")),),  # the sort is stable
    level=lambda _transformer, _path: 0,  # no downsampling on the way
    outside=outside,
    latents="hidden_states",
    text="encoder_hidden_states",
    grid=grid,
    default_grid=lambda _transformer, _level: (64, 64),
    text_parts=(TextPart("tokenizer"),),
    text_tokens=128,
    guidance="batched",
    branches=("uncond", "cond"),
    text_ends_in_last_block=True,
)
