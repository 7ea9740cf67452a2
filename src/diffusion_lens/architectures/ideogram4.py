"""Ideogram4Transformer2DModel: text and image packed into one sequence by the pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from diffusion_lens.architectures import forms
from diffusion_lens.architectures.forms import TXT_IMG
from diffusion_lens.architectures.spec import DenoiserSpec, TextPart

IMAGE = 2
"""What `indicator` holds where a token is the image's."""


def grid(_denoiser: nn.Module, arguments: Mapping[str, Any], _level: int) -> tuple[int, ...]:
    """(height, width) in tokens."""
    places: Tensor = arguments["position_ids"][0][arguments["indicator"][0] == IMAGE]
    height, width = (places.amax(0) - places.amin(0) + 1)[1:].tolist()
    return (height, width)


def text_length(_denoiser: nn.Module, arguments: Mapping[str, Any]) -> list[int]:
    """Tokens before the image, padding among them."""
    return (arguments["indicator"] != IMAGE).sum(1).tolist()


def image_length(_denoiser: nn.Module, arguments: Mapping[str, Any]) -> int:
    """Tokens of the image."""
    return int((arguments["indicator"][0] == IMAGE).sum())


def chat(pipe: Any, prompt: str) -> str:
    """The prompt as a user's message."""
    message = {"role": "user", "content": [{"type": "text", "text": prompt}]}
    return pipe.tokenizer.apply_chat_template([message], add_generation_prompt=True, tokenize=False)


IDEOGRAM4 = DenoiserSpec(
    denoiser="Ideogram4Transformer2DModel",
    family="Ideogram 4",
    blocks={
        "Ideogram4TransformerBlock": forms.sequential(
            TXT_IMG,
            attention="attention",
            norm="ffn_norm1",
            mlp=("feed_forward", "feed_forward.w2"),
            gates=forms.sandwiched(
                forms.chunked(1, 3, 4, module="adaln_modulation", activation="tanh"),
                ("attention_norm2", "ffn_norm2"),
            ),
            sizes=lambda attention: (attention.num_heads, attention.head_dim),
        )
    },
    # Latents, text and prediction are as long as both together, each empty where the other is.
    outside=forms.points(
        ("token", "channel"), embedding="t_embedding", text_axes=("token", "d_text")
    ),
    latents="hidden_states",
    text="encoder_hidden_states",
    grid=grid,
    grid_from="position_ids",
    default_grid=forms.native(128, 128),
    text_parts=(
        TextPart("tokenizer", template=chat, in_front=True, bare=True, cut="which refuses it"),
    ),
    text_tokens=2048,
    guidance="calls",
    branches=("cond", "uncond"),  # of the second denoiser
    timestep_scale=-1000.0,
    text_length=text_length,
    image_length=image_length,
    without_concepts=forms.TEXT_UNKNOWN,
)
