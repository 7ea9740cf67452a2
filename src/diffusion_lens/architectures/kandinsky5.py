"""Kandinsky5Transformer3DModel: self-attention, cross-attention, MLP, with a gate on each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_lens.architectures import chats, forms
from diffusion_lens.architectures.spec import DenoiserSpec, Gate, TextPart


def grid(denoiser: Any, arguments: Mapping[str, Any], _level: int) -> tuple[int, ...]:
    """(frames, height, width) in tokens."""
    size = arguments["hidden_states"].shape[1:4]
    return tuple(side // by for side, by in zip(size, denoiser.config.patch_size, strict=True))


def described(pipe: Any, prompt: str) -> str:
    """The cleaned prompt in a chat that asks for a description."""
    return chats.filled("prompt_template")(pipe, chats.without_entities(pipe, prompt))


def heads(attention: Any) -> tuple[int, int]:
    """Number of heads and their width."""
    return attention.num_heads, attention.query_norm.normalized_shape[0]


KANDINSKY5 = DenoiserSpec(
    denoiser="Kandinsky5Transformer3DModel",
    family="Kandinsky 5",
    blocks={
        "Kandinsky5TransformerDecoderBlock": forms.crossed(
            ("cross_attention_norm", "feed_forward_norm"),
            mlp=("feed_forward", "feed_forward.out_layer"),
            gates=forms.chunked(2, 8, 9, module="visual_modulation"),
            cross_gate=Gate("visual_modulation", 5, 9),
            before_rope=("query_norm", "key_norm"),
            copied=True,
            within="visual_embed",
            attentions=("self_attention", "cross_attention"),
            projection="out_layer",
            sizes=heads,
        )
    },
    outside=forms.points(
        ("frame", "height", "width", "channel"),
        embedding="time_embeddings",
        pooled="pooled_projections",
    ),
    latents="hidden_states",
    text="encoder_hidden_states",
    grid=grid,
    default_grid=forms.native(31, 32, 48),
    text_parts=(
        TextPart(
            "tokenizer",
            template=described,
            dropped=lambda pipe: pipe.prompt_template_encode_start_idx,
            before=chats.none_alone,
            padded=False,
            cut="which takes characters off the end of its chat and tokenizes it once more",
        ),
    ),
    text_tokens=512,
    guidance="calls",
    branches=("cond", "uncond"),
    refiners={
        "text_transformer_blocks": forms.sequential(
            ("txt",),
            within="x",
            attention="self_attention",
            norm="feed_forward_norm",
            mlp=("feed_forward", "feed_forward.out_layer"),
            gates=forms.chunked(2, 5, 6, module="text_modulation"),
            before_rope=("query_norm", "key_norm"),
            copied=True,
            projection="out_layer",
            sizes=heads,
        )
    },
)
