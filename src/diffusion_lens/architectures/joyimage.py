"""JoyImage-Edit and Edit Plus: double blocks only, the image (and its references) first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from diffusion_lens.architectures import chats, forms
from diffusion_lens.architectures.forms import IMG_TXT, Own
from diffusion_lens.architectures.spec import (
    ConceptEntry,
    Concepts,
    DenoiserSpec,
    Gate,
    Placed,
    TextPart,
)
from diffusion_lens.errors import WordError


def own(stream: str) -> Own:
    """The parts of one stream, which carry its name."""
    norms = (f"attn.{stream}_attn_q_norm", f"attn.{stream}_attn_k_norm")
    return Own(
        f"attn.{stream}_attn_proj",
        f"{stream}_norm2",
        f"{stream}_mlp",
        f"{stream}_mlp.net.2",
        gates=(Gate(f"{stream}_mod", 2), Gate(f"{stream}_mod", 5)),
        before_rope=norms,
    )


def block(positions: Placed) -> forms.Block:
    """A double block, given where its rotary embeddings lie."""
    return forms.joint(
        IMG_TXT,
        {stream: own(stream) for stream in IMG_TXT},
        returns=IMG_TXT,
        sizes=lambda attention: (attention.heads, attention.head_dim),
        concepts=Concepts(positions=positions),
    )


def grid(denoiser: Any, arguments: Mapping[str, Any], _level: int) -> tuple[int, ...]:
    """(frames, height, width) in tokens of the image that is made; references follow it."""
    size = arguments["hidden_states"].shape[-3:]
    return tuple(side // by for side, by in zip(size, denoiser.config.patch_size, strict=True))


def order(pipe: Any, prompt: str) -> str:
    """Edit's chat about no image.

    Raises:
        WordError: If the tokenizer cuts it: that limit is not the one that the run is told.
    """
    whole = pipe.prompt_template_encode["image"].format(prompt)
    most = pipe.text_token_max_length + pipe.prompt_template_encode_start_idx["image"]
    if len(pipe.tokenizer(whole).input_ids) > most:
        raise WordError(
            f"the prompt {prompt[:40]!r}… is too long for {type(pipe).__name__}, which cuts its "
            f"template to {most} tokens; shorten it, or use token indices"
        )
    return whole


def question(pipe: Any, prompt: str) -> str:
    """Edit Plus's chat about no image."""
    asked = f"<|im_start|>user\n{prompt}<|im_end|>\n"
    return pipe.prompt_template_encode["multiple_images"].format(asked)


def image_length(denoiser: Any, arguments: Mapping[str, Any]) -> int:
    """Tokens of the image and its references."""
    latents = arguments["hidden_states"]
    images = latents.shape[1] if latents.ndim == 6 else 1
    return images * math.prod(grid(denoiser, arguments, 0))


def grid_of_shapes(_denoiser: Any, arguments: Mapping[str, Any], _level: int) -> tuple[int, ...]:
    """The same, from the sizes that the pipeline gives."""
    return tuple(arguments["shape_list"][0][0])


JOY_IMAGE_EDIT = DenoiserSpec(
    denoiser="JoyImageEditTransformer3DModel",
    family="JoyImage-Edit",
    blocks={"JoyImageTransformerBlock": block(forms.placed_apart("image_rotary_emb", *IMG_TXT))},
    outside=forms.points(
        ("image", "channel", "frame", "height", "width"),
        embedding="condition_embedder.time_embedder",
    ),
    latents="hidden_states",
    text="encoder_hidden_states",
    grid=grid,
    default_grid=forms.native(1, 64, 64),
    text_parts=(
        TextPart(
            "tokenizer",
            template=order,
            dropped=lambda pipe: pipe.prompt_template_encode_start_idx["image"],
            padded=False,
            assumed=("image",),
        ),
    ),
    text_tokens=2048,
    guidance="calls",
    branches=("cond", "uncond"),
    text_ends_in_last_block=True,
    image_length=image_length,
    concepts=ConceptEntry(("condition_embedder.text_embedder",)),
)
JOY_IMAGE_EDIT_PLUS = replace(
    JOY_IMAGE_EDIT,
    denoiser="JoyImageEditPlusTransformer3DModel",
    family="JoyImage-Edit Plus",
    blocks={
        "JoyImageEditPlusTransformerBlock": block(forms.placed("image_rotary_emb", "img", axis=1))
    },
    outside=forms.points(
        ("pos", "channel", "depth", "down", "right"),
        embedding="condition_embedder.time_embedder",
    ),
    grid=grid_of_shapes,
    image_length=lambda _denoiser, arguments: arguments["hidden_states"].shape[1],
    grid_from="shape_list",
    text_parts=(
        TextPart(
            "processor",
            template=question,
            dropped=lambda pipe: pipe.prompt_template_encode_start_idx["multiple_images"],
            padded=False,
            before=chats.none_alone,
            assumed=("images",),
            of_call=True,
            cut="which keeps the last tokens of its template and not the first",
        ),
    ),
    guidance="batched",
    branches=("uncond", "cond"),
)
