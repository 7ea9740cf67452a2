"""CogVideoXTransformer3DModel: video and text share all weights but those of the modulation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from diffusion_lens.architectures import forms
from diffusion_lens.architectures.spec import (
    ConceptEntry,
    Concepts,
    DenoiserSpec,
    Gate,
    Mid,
    TextPart,
)

JOINT_BLOCK = forms.shared(
    {
        "img": Mid("resid_mid", "norm2", ("attn",)),
        "txt": Mid("resid_mid", "norm2", ("attn",), 1),
    },
    {
        "img": (Gate("norm1", 2), Gate("norm2", 2)),
        "txt": (Gate("norm1", 3), Gate("norm2", 3)),
    },
    concepts=Concepts(positions=forms.placed("image_rotary_emb", "img")),
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
    side, depth = config.patch_size, getattr(config, "patch_size_t", None) or 1
    return (-(-frames // depth), height // side, width // side)


COGVIDEOX = DenoiserSpec(
    denoiser="CogVideoXTransformer3DModel",
    family="CogVideoX",
    blocks={"CogVideoXBlock": JOINT_BLOCK},
    outside=forms.points(("frame", "channel", "height", "width"), embedding="time_embedding"),
    latents="hidden_states",
    text="encoder_hidden_states",
    grid=grid,
    default_grid=default_grid,
    text_parts=(TextPart("tokenizer"),),
    text_tokens=226,
    text_ends_in_last_block=True,
    concepts=ConceptEntry(("patch_embed.text_proj",)),
)
CONSISID = replace(
    COGVIDEOX,
    denoiser="ConsisIDTransformer3DModel",
    family="ConsisID",
    blocks={"ConsisIDBlock": JOINT_BLOCK},
)
