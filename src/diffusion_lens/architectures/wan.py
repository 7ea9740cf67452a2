"""WanTransformer3DModel and its near copies: self-attention, cross-attention, MLP, for video."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from diffusion_lens.architectures import chats, forms
from diffusion_lens.architectures.spec import DenoiserSpec, TextPart
from diffusion_lens.errors import EngineError

TEXT_TOKENS = 512
"""How many of the last tokens the classes take for the text where an image goes before it."""


def products(block: Any) -> tuple[str, ...]:
    """Image-to-video models attend to an image first, then to the text."""
    return ("",) if block.attn2.add_k_proj is None else ("ip", "")


def face(denoiser: Any, block: int) -> Mapping[str, str]:
    """Attention to the face's motion is added behind every few blocks."""
    injected = block % denoiser.config.inject_face_latents_blocks == 0
    return {"img": "attention to the face's motion is added"} if injected else {}


def control(denoiser: Any, block: int) -> Mapping[str, str]:
    """What the control's own blocks give is added behind the blocks that they stand beside."""
    controlled = block in denoiser.config.vace_layers
    return {"img": "a hint of the control is added"} if controlled else {}


def text_length(_denoiser: Any, arguments: Mapping[str, Any]) -> list[int]:
    """Number of text tokens of each sample.

    Raises:
        EngineError: If the class would take some of them for the image's, or the other way round.
    """
    text = arguments["encoder_hidden_states"]
    image = arguments.get("encoder_hidden_states_image")
    if image is not None and text.shape[1] != TEXT_TOKENS:
        raise EngineError(
            f"{text.shape[1]} text tokens go with {image.shape[1]} of an image, of which the last "
            f"{TEXT_TOKENS} are taken for the text whatever they are; give max_sequence_length="
            f"{TEXT_TOKENS}"
        )
    return [int(text.shape[1])] * len(text)


WAN = DenoiserSpec(
    denoiser="WanTransformer3DModel",
    family="Wan 2.1 / 2.2",
    blocks={
        "WanTransformerBlock": forms.crossed(
            ("norm2", "norm3"),
            mlp=("ffn", "ffn.net.2"),
            gates=forms.chunked(
                2, 5, 6, argument="temb", stacked=True, table="scale_shift_table", upcast=True
            ),
            before_rope=("norm_q", "norm_k"),
            heads_joined=True,
            copied=True,
            products=products,
        )
    },
    outside=forms.points(
        ("channel", "frame", "height", "width"), embedding="condition_embedder.time_embedder"
    ),
    latents="hidden_states",
    text="encoder_hidden_states",
    grid=forms.grid_of_latents(),
    default_grid=forms.native(21, 30, 52),
    text_parts=(TextPart("tokenizer", template=chats.without_entities),),
    text_tokens=TEXT_TOKENS,
    text_length=text_length,
    guidance="calls",
    branches=("cond", "uncond"),
    to_context=("condition_embedder.text_embedder",),
)
CHRONO_EDIT = replace(WAN, denoiser="ChronoEditTransformer3DModel", family="ChronoEdit")
SKYREELS_V2 = replace(
    WAN,
    denoiser="SkyReelsV2Transformer3DModel",
    family="SkyReels-V2",
    blocks={"SkyReelsV2TransformerBlock": WAN.blocks["WanTransformerBlock"]},
)
WAN_ANIMATE = replace(
    WAN,
    denoiser="WanAnimateTransformer3DModel",
    family="Wan-Animate",
    between=face,
    apart={"face_adapter": "the face is added between blocks"},
)
WAN_VACE = replace(
    WAN,
    denoiser="WanVACETransformer3DModel",
    family="Wan VACE",
    between=control,
    apart={"vace_blocks": "the control passes blocks of its own"},
    without_batch=("control_hidden_states_scale",),  # a strength for each layer
)
