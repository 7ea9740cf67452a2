"""CosmosTransformer3DModel: self-attention, cross-attention and MLP, each gated by its norm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_lens.architectures import forms
from diffusion_lens.architectures.spec import BlockSpec, DenoiserSpec, Gate, TextPart
from diffusion_lens.errors import UnsupportedModelError

_CROSSED = forms.crossed(
    ("norm2", "norm3"),
    gates=(Gate("norm1", 1), Gate("norm3", 1)),
    cross_gate=Gate("norm2", 1),
    before_rope=("norm_q", "norm_k"),
    heads_first=True,
    entrance="norm1",
)


def block(module: Any) -> BlockSpec:
    """As in the base models.

    Raises:
        UnsupportedModelError: If cross-attention reads an image, too, with queries of its own.
    """
    if hasattr(module.attn2, "q_img"):
        raise UnsupportedModelError(
            "Cosmos with `img_context_dim_in` is not described: its cross-attention has two "
            "products with queries of their own, behind one projection"
        )
    return _CROSSED(module)


def positions(denoiser: Any, _block: int) -> Mapping[str, str]:
    """Cosmos 1 adds learned positions at the entrance of every block."""
    return {"img": "positions are added"} if denoiser.config.extra_pos_embed_type else {}


ASKED = "You are a helpful assistant who will provide prompts to an image generator."


def told(pipe: Any, prompt: str) -> str:
    """The prompt as it is for T5; in Cosmos 2.5 a chat with Qwen, whose system message is fixed."""
    if not type(pipe).__name__.startswith("Cosmos2_5"):
        return prompt
    messages = [
        {"role": role, "content": [{"type": "text", "text": text}]}
        for role, text in (("system", ASKED), ("user", prompt))
    ]
    return pipe.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=False, add_vision_id=False
    )


COSMOS = DenoiserSpec(
    denoiser="CosmosTransformer3DModel",
    family="Cosmos",
    blocks={"CosmosTransformerBlock": block},
    outside=forms.points(
        ("channel", "frame", "height", "width"), embedding="time_embed.t_embedder"
    ),
    latents="hidden_states",
    text="encoder_hidden_states",
    grid=forms.grid_of_latents(),
    default_grid=forms.native(16, 44, 80),
    text_parts=(TextPart("tokenizer", template=told),),
    text_tokens=512,
    guidance="calls",
    branches=("cond", "uncond"),
    between=positions,
)
