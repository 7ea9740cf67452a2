"""CogVideoXTransformer3DModel: video and text share all weights but those of the modulation."""

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


def joint_block(_block: nn.Module) -> BlockSpec:
    """Joint attention of [txt, img], then one MLP on both; `norm1` and `norm2` gate each apart."""
    attention = Attention(
        "attn",
        "attn1",
        JOINT,
        JOINT,
        dict.fromkeys(JOINT, Projection("attn1.to_out.0", JOINT)),
        outputs={"img": 0, "txt": 1},
        gates={"img": Gate("norm1", 2), "txt": Gate("norm1", 3)},
        before_rope=dict.fromkeys(JOINT, ("attn1.norm_q", "attn1.norm_k")),
        heads_first=True,
    )
    return BlockSpec(
        streams={
            "img": Stream("hidden_states", 0, (Mid("resid_mid", "norm2", ("attn",)),)),
            "txt": Stream("encoder_hidden_states", 1, (Mid("resid_mid", "norm2", ("attn",), 1),)),
        },
        attentions=(attention,),
        mlps={
            "img": Mlp("ff", "ff.net.2", Gate("norm2", 2), JOINT),
            "txt": Mlp("ff", "ff.net.2", Gate("norm2", 3), JOINT),
        },
        concepts=Concepts(positions={"image_rotary_emb": ("img",)}),
    )


def outside(_transformer: nn.Module) -> tuple[ModulePoint, ...]:
    """Latents, embeddings and the prediction."""
    video, text = ("batch", "frame", "channel", "height", "width"), ("encoder_hidden_states",)
    return (
        ModulePoint("hook_latents", video, "", argument=("hidden_states",)),
        ModulePoint("hook_timestep_emb", ("batch", "d_emb"), "time_embedding"),
        ModulePoint("hook_text_emb", ("batch", "pos", "d_text"), "", argument=text, stream="txt"),
        ModulePoint("hook_noise_pred", video, "", output=0),
    )


def grid(transformer: Any, arguments: Mapping[str, Any], _level: int) -> tuple[int, ...]:
    """(frames, height, width) in patches."""
    frames, _, height, width = arguments["hidden_states"].shape[1:]
    return _patches(transformer.config, frames, height, width)


def default_grid(transformer: Any, _level: int) -> tuple[int, ...]:
    """(frames, height, width) in patches for a video of the model's native size."""
    config = transformer.config
    frames = (config.sample_frames - 1) // config.temporal_compression_ratio + 1
    return _patches(config, frames, config.sample_height, config.sample_width)


def _patches(config: Any, frames: int, height: int, width: int) -> tuple[int, ...]:
    side, depth = config.patch_size, config.patch_size_t or 1
    return (-(-frames // depth), height // side, width // side)


COGVIDEOX = DenoiserSpec(
    denoiser="CogVideoXTransformer3DModel",
    family="CogVideoX",
    blocks={"CogVideoXBlock": joint_block},
    order=lambda _path: (0,),
    level=lambda _transformer, _path: 0,
    outside=outside,
    latents="hidden_states",
    text="encoder_hidden_states",
    grid=grid,
    default_grid=default_grid,
    text_parts=(TextPart("tokenizer"),),
    text_tokens=226,
    text_ends_in_last_block=True,
    concepts=ConceptEntry(
        "patch_embed.text_proj", "time_embedding", pooled_argument=None, pooled="prompt"
    ),
)
