"""MotifVideoTransformer3DModel: HunyuanVideo's blocks, without its refiner and its pooled text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from diffusion_lens.architectures import forms, hunyuan
from diffusion_lens.architectures.spec import (
    BlockSpec,
    ConceptEntry,
    DenoiserSpec,
    ModulePoint,
    TextPart,
)
from diffusion_lens.errors import UnsupportedModelError, WordError


def without_cross_attention(block: forms.Block) -> forms.Block:
    """A block that has none, and a reason where it has.

    Its queries are made of the joint attention's output, not of a stream.
    """

    def describe(module: nn.Module) -> BlockSpec:
        if module.cross_attn is not None:
            raise UnsupportedModelError(
                f"{type(module).__name__} has a cross-attention whose queries are the output of "
                "its joint attention, which is not described; only models with "
                "`enable_text_cross_attention_dual` and `…_single` off are"
            )
        return block(module)

    return describe


OUTSIDE = forms.points(("channel", "frame", "height", "width"), embedding="time_text_embed")


def outside(denoiser: Any) -> tuple[ModulePoint, ...]:
    """Latents, embeddings and the prediction.

    Raises:
        UnsupportedModelError: If some blocks are a decoder, which begins anew from the latents and
            reads the other blocks' image where they read the text.
    """
    decoding = denoiser.config.num_decoder_layers
    if decoding:
        raise UnsupportedModelError(
            f"the last {decoding} blocks of {type(denoiser).__name__} are a decoder, which begins "
            "anew from the latents and has the image of the blocks before it in the text's place; "
            "only models with `num_decoder_layers=0` are described"
        )
    return OUTSIDE(denoiser)


def with_image(_denoiser: nn.Module, arguments: Mapping[str, Any]) -> list[int]:
    """Number of text tokens of each sample, those of a first frame before them."""
    kinds = [arguments["encoder_hidden_states"], arguments.get("image_embeds")]
    return [sum(kind.shape[1] for kind in kinds if kind is not None)] * len(kinds[0])


def plain(pipe: Any, prompt: str) -> str:
    """The prompt as it is.

    Raises:
        WordError: If a first frame's tokens go before it.
    """
    name = type(pipe).__name__
    if "Image" in name:
        raise WordError(
            f"{name} puts tokens of the first frame before the prompt's, so that words cannot be "
            "told; use token indices"
        )
    return prompt


MOTIF_VIDEO = DenoiserSpec(
    denoiser="MotifVideoTransformer3DModel",
    family="Motif-Video",
    blocks={
        "MotifVideoTransformerBlock": without_cross_attention(hunyuan.DOUBLE),
        "MotifVideoSingleTransformerBlock": without_cross_attention(hunyuan.SINGLE),
    },
    outside=outside,
    latents="hidden_states",
    text="encoder_hidden_states",
    grid=forms.grid_of_latents(),
    default_grid=forms.native(31, 46, 80),
    text_parts=(TextPart("tokenizer", template=plain),),
    text_tokens=512,
    text_length=with_image,
    guidance="calls",
    branches=("cond", "uncond"),
    text_ends_in_last_block=True,
    concepts=ConceptEntry(),
)
