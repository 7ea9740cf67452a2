"""HunyuanVideo and HunyuanImage: Flux's blocks with the image before the text."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from diffusion_lens.architectures import chats, forms
from diffusion_lens.architectures.forms import IMG_TXT
from diffusion_lens.architectures.spec import ConceptEntry, Concepts, DenoiserSpec, Gate, TextPart
from diffusion_lens.errors import WordError

APART = "it refines each kind of text by itself, of which the text stream is joined"
ROPE = {**forms.placed("freqs_cis", "img"), **forms.placed("image_rotary_emb", "img")}
DOUBLE = forms.joint(
    IMG_TXT,
    {
        "img": replace(forms.IMAGE, gates=forms.adaptive("norm1")),
        "txt": replace(forms.TEXT, gates=forms.adaptive("norm1_context")),
    },
    returns=IMG_TXT,
    concepts=Concepts(positions=ROPE),
)
SINGLE = forms.parallel(
    IMG_TXT,
    projection="proj_out",
    gate=Gate("norm", 1),
    returns=IMG_TXT,
    concepts=Concepts(positions=ROPE, by_default=False),
)


def with_glyphs(denoiser: Any, arguments: Mapping[str, Any]) -> list[int]:
    """Number of text tokens of each sample, those of quoted words among them."""
    kinds = [arguments["encoder_hidden_states"], arguments.get("encoder_hidden_states_2")]
    kinds = kinds[: 1 if denoiser.context_embedder_2 is None else 2]
    return [sum(kind.shape[1] for kind in kinds if kind is not None)] * len(kinds[0])


JOINED = (
    "its text stream joins an image, quoted glyphs and the prompt in the order of what is masked"
)


def chat(pipe: Any, prompt: str) -> str:
    """The chat that HunyuanVideo makes of a prompt."""
    return _template(pipe)["template"].format(prompt)


def cropped(pipe: Any) -> int:
    """How many tokens of its start are cut away."""
    return _template(pipe)["crop_start"]


def _template(pipe: Any) -> Mapping[str, Any]:
    """The chat's words and the length of their start, as the pipeline's class has them.

    Raises:
        WordError: If its tokens do not lie where these two tell.
    """
    name, side = type(pipe).__name__, pipe.tokenizer.padding_side
    template = inspect.signature(type(pipe).encode_prompt).parameters["prompt_template"].default
    if set(template) != {"template", "crop_start"}:
        raise WordError(
            f"{name} puts an image into its prompt, which moves the words behind it, so that they "
            "cannot be told; use token indices"
        )
    if side != "right":
        raise WordError(
            f"the tokenizer of {name} pads on the {side}, where the pipeline cuts the chat's start "
            "away, so that words cannot be told; use token indices, or set "
            '`pipe.tokenizer.padding_side = "right"`'
        )
    return template


def joined_length(_denoiser: nn.Module, arguments: Mapping[str, Any]) -> list[int]:
    """Number of text tokens of each sample where three kinds of text are joined."""
    names = ("encoder_hidden_states", "encoder_hidden_states_2", "image_embeds")
    kinds = [arguments[name] for name in names]
    return [sum(kind.shape[1] for kind in kinds)] * len(kinds[0])


HUNYUAN_VIDEO = DenoiserSpec(
    denoiser="HunyuanVideoTransformer3DModel",
    family="HunyuanVideo",
    blocks={
        "HunyuanVideoTransformerBlock": DOUBLE,
        "HunyuanVideoSingleTransformerBlock": SINGLE,
    },
    outside=forms.points(
        ("channel", "frame", "height", "width"),
        embedding="time_text_embed",
        pooled="pooled_projections",
    ),
    latents="hidden_states",
    text="encoder_hidden_states",
    grid=forms.grid_of_latents(),
    default_grid=forms.native(33, 45, 80),
    text_parts=(
        TextPart("tokenizer", template=chat, dropped=cropped, assumed=("prompt_template",)),
    ),
    text_tokens=256,
    guidance="calls",
    branches=("cond", "uncond"),
    text_ends_in_last_block=True,
    refiners={
        "context_embedder.token_refiner.refiner_blocks": forms.sequential(
            ("txt",), gates=(Gate("norm_out", 0), Gate("norm_out", 1)), before_rope=None
        )
    },
    concepts=ConceptEntry(pooled_argument="pooled_projection"),
)
HUNYUAN_IMAGE = replace(
    HUNYUAN_VIDEO,
    denoiser="HunyuanImageTransformer2DModel",
    family="HunyuanImage 2.1",
    blocks={
        "HunyuanImageTransformerBlock": DOUBLE,
        "HunyuanImageSingleTransformerBlock": SINGLE,
    },
    outside=forms.points(("channel", "height", "width"), embedding="time_guidance_embed"),
    default_grid=forms.native(64, 64),
    text_parts=(
        TextPart(
            "tokenizer",
            template=chats.without_glyphs,
            dropped=lambda pipe: pipe.prompt_template_encode_start_idx,
        ),
    ),
    text_length=with_glyphs,
    text_tokens=1000,
    refiners={},
    apart={"context_embedder": APART},
    concepts=ConceptEntry(),
)
HUNYUAN_VIDEO_15 = replace(
    HUNYUAN_VIDEO,
    denoiser="HunyuanVideo15Transformer3DModel",
    family="HunyuanVideo 1.5",
    blocks={"HunyuanVideo15TransformerBlock": DOUBLE},
    outside=forms.points(("channel", "frame", "height", "width"), embedding="time_embed"),
    default_grid=forms.native(31, 30, 53),
    text_parts=(TextPart("tokenizer", untold=JOINED),),
    text_tokens=1985,
    text_length=joined_length,
    refiners={},
    apart={"context_embedder": APART},
    concepts=None,
    without_concepts="three kinds of text are marked and joined before they meet the image",
)
