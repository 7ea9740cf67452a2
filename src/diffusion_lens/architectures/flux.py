"""FluxTransformer2DModel: double blocks with two streams, then parallel single blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from diffusion_lens.architectures.spec import (
    Attention,
    BlockSpec,
    ConceptEntry,
    Concepts,
    DenoiserSpec,
    Gate,
    Mid,
    Mlp,
    ModulePoint,
    Projection,
    Stream,
    TextPart,
)

JOINT = ("txt", "img")


def double_block(block: Any) -> BlockSpec:
    """Joint attention of [txt, img] with weights of its own for each stream."""
    attention = Attention(
        "attn",
        "attn",
        JOINT,
        JOINT,
        {
            "img": Projection("attn.to_out.0", ("img",)),
            "txt": Projection("attn.to_add_out", ("txt",)),
        },
        outputs={"img": 0, "txt": 1},
        gates={"img": Gate("norm1", 1), "txt": Gate("norm1_context", 1)},
        before_rope={
            "img": ("attn.norm_q", "attn.norm_k"),
            "txt": ("attn.norm_added_q", "attn.norm_added_k"),
        },
        products=_products(block),
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
        concepts=Concepts(positions={"image_rotary_emb": JOINT}),
    )


def single_block(block: Any) -> BlockSpec:
    """Attention and MLP in parallel on the joined sequence, one projection for both."""
    projection = Projection("proj_out", JOINT, fused=True)
    gate = Gate("norm", 1)
    attention = Attention(
        "attn",
        "attn",
        JOINT,
        JOINT,
        {"img": projection, "txt": projection},
        gates={"img": gate, "txt": gate},
        before_rope=dict.fromkeys(JOINT, ("attn.norm_q", "attn.norm_k")),
        products=_products(block),
    )
    parallel = "attention and MLP run in parallel here, nothing lies between them"
    return BlockSpec(
        streams={
            "img": Stream("hidden_states", 1, updates=("attn", "mlp")),
            "txt": Stream("encoder_hidden_states", 0, updates=("attn", "mlp")),
        },
        attentions=(attention,),
        mlps={stream: Mlp(None, "proj_out", gate) for stream in JOINT},
        absent={f"{stream}.hook_resid_mid": parallel for stream in JOINT},
        concepts=Concepts(positions={"image_rotary_emb": JOINT}, by_default=False),
    )


def _products(block: Any) -> tuple[str, ...]:
    processor = block.attn.processor
    if "IPAdapter" not in type(processor).__name__:
        return ("",)
    return ("", "ip", *(f"ip{number}" for number in range(2, len(processor.scale) + 1)))


def outside(_transformer: nn.Module) -> tuple[ModulePoint, ...]:
    """Packed latents, embeddings and the prediction."""
    packed = ("batch", "pos", "channel")
    text = ("encoder_hidden_states",)
    return (
        ModulePoint("hook_latents", packed, "", argument=("hidden_states",), stream="img"),
        ModulePoint("hook_timestep_emb", ("batch", "d_emb"), "time_text_embed"),
        ModulePoint("hook_text_emb", ("batch", "pos", "d_text"), "", argument=text, stream="txt"),
        ModulePoint("hook_pooled_text_emb", ("batch", "d_text"), "", ("pooled_projections",)),
        ModulePoint("hook_noise_pred", packed, "", output=0, stream="img"),
    )


def grid(_transformer: nn.Module, arguments: Mapping[str, Any], _level: int) -> tuple[int, ...]:
    """(height, width) in tokens, from the position ids; reference images (first id > 0) apart."""
    ids = arguments["img_ids"].reshape(-1, arguments["img_ids"].shape[-1])
    last = ids[ids[:, 0] == 0].amax(0)
    return (int(last[1]) + 1, int(last[2]) + 1)


def default_grid(_transformer: nn.Module, _level: int) -> tuple[int, ...]:
    """(height, width) in tokens at 1024 pixels; Flux itself knows no native size."""
    return (64, 64)


FLUX = DenoiserSpec(
    denoiser="FluxTransformer2DModel",
    family="Flux.1",
    blocks={
        "FluxTransformerBlock": double_block,
        "FluxSingleTransformerBlock": single_block,
    },
    order=lambda path: (int(path.startswith("single_")),),
    level=lambda _transformer, _path: 0,
    outside=outside,
    latents="hidden_states",
    text="encoder_hidden_states",
    grid=grid,
    grid_from="img_ids",
    default_grid=default_grid,
    text_parts=(TextPart("tokenizer_2", prompt="prompt_2"),),
    text_tokens=512,
    guidance="calls",
    branches=("cond", "uncond"),
    timestep_scale=1000.0,
    text_ends_in_last_block=True,
    concepts=ConceptEntry(pooled="zeros"),
)
