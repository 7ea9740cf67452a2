"""EasyAnimateTransformer3DModel: double blocks with one norm module for both streams."""

from __future__ import annotations

from typing import Any

from diffusion_lens.architectures import forms
from diffusion_lens.architectures.forms import IMG_TXT, TXT_IMG, Own
from diffusion_lens.architectures.spec import (
    BlockSpec,
    ConceptEntry,
    Concepts,
    DenoiserSpec,
    Gate,
    TextPart,
)
from diffusion_lens.errors import UnsupportedModelError

_JOINT = forms.joint(
    TXT_IMG,
    {
        "img": Own(
            "attn1.to_out.0",
            "norm2",
            "ff",
            "ff.net.2",
            gates=(Gate("norm1", 2), Gate("norm2", 2)),
            before_rope=("attn1.norm_q", "attn1.norm_k"),
        ),
        "txt": Own(
            "attn1.to_add_out",
            "norm2",
            "txt_ff",
            "txt_ff.net.2",
            gates=(Gate("norm1", 3), Gate("norm2", 3)),
            before_rope=("attn1.norm_added_q", "attn1.norm_added_k"),
            place=1,
        ),
    },
    returns=IMG_TXT,
    attention="attn1",
    heads_first=True,
    concepts=Concepts(positions=forms.placed("image_rotary_emb", "img")),
)


def joint_block(block: Any) -> BlockSpec:
    """As every released model has them.

    Raises:
        UnsupportedModelError: If text and image share the block's weights, or one norm stands
            behind both MLPs.
    """
    if block.txt_ff is None or block.norm3 is not None:
        raise UnsupportedModelError(
            "EasyAnimate with `mmdit_layers` below `num_layers` or with `after_norm` is not "
            "described: no released model has either"
        )
    return _JOINT(block)


def chat(pipe: Any, prompt: str) -> str:
    """The prompt as a user's message."""
    message = {"role": "user", "content": [{"type": "text", "text": prompt}]}
    return pipe.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)


def grid(denoiser: Any, arguments: Any, _level: int) -> tuple[int, ...]:
    """(frames, height, width) in tokens; patches are flat."""
    frames, *sides = arguments["hidden_states"].shape[2:]
    return (frames, *(side // denoiser.config.patch_size for side in sides))


EASY_ANIMATE = DenoiserSpec(
    denoiser="EasyAnimateTransformer3DModel",
    family="EasyAnimate",
    blocks={"EasyAnimateTransformerBlock": joint_block},
    outside=forms.points(("channel", "frame", "height", "width"), embedding="time_embedding"),
    latents="hidden_states",
    text="encoder_hidden_states",
    grid=grid,
    default_grid=forms.native(13, 32, 32),
    text_parts=(TextPart("tokenizer", template=chat, padded=False),),
    text_tokens=256,
    text_ends_in_last_block=True,
    concepts=ConceptEntry(("text_proj",)),
)
