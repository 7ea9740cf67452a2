"""HunyuanDiT2DModel: self-attention, cross-attention to CLIP's text and T5's, MLP; long skips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from diffusion_lens.architectures import forms
from diffusion_lens.architectures.spec import BlockSpec, DenoiserSpec, ModulePoint, TextPart

POOLER = "time_extra_emb.pooler"
T5 = "encoder_hidden_states_t5"


def block(module: Any) -> BlockSpec:
    """A block of the second half mixes in what one of the first half returned before all else."""
    entrance = None if module.skip_linear is None else "norm1"
    form = forms.crossed(
        ("norm2", "norm3"), before_rope=("norm_q", "norm_k"), heads_first=True, entrance=entrance
    )
    return form(module)


def outside(denoiser: Any) -> tuple[ModulePoint, ...]:
    """Latents, embeddings of CLIP's text, the prediction; T5's text is pooled inside."""
    points = forms.points(
        ("channel", "height", "width"), embedding="time_extra_emb.timestep_embedder"
    )
    pooled = ModulePoint("hook_pooled_text_emb", ("batch", "d_text"), POOLER)
    held = denoiser.config.text_len
    return (
        *(replace(one, held=held) if one.stream == "txt" else one for one in points(denoiser)),
        pooled,
    )


def text_length(_denoiser: nn.Module, arguments: Mapping[str, Any]) -> list[int]:
    """Number of text tokens of each sample, CLIP's and T5's."""
    kinds = [arguments["encoder_hidden_states"], arguments[T5]]
    return [sum(kind.shape[1] for kind in kinds)] * len(kinds[0])


def skips(denoiser: Any, block: int) -> Mapping[str, str]:
    """Long skips lead from the first half of the blocks to the second, the last taken first."""
    half = denoiser.config.num_layers // 2
    if block < half - 1:
        return {"img": f"block {2 * half - 1 - block} takes it, too, by a long skip"}
    return {"img": "what an earlier block returned is mixed in"} if block >= half else {}


HUNYUAN_DIT = DenoiserSpec(
    denoiser="HunyuanDiT2DModel",
    family="HunyuanDiT",
    blocks={"HunyuanDiTBlock": block},
    outside=outside,
    latents="hidden_states",
    text="encoder_hidden_states",
    text_beside=(T5,),
    text_length=text_length,
    pooled={T5: POOLER},
    grid=forms.grid_of_latents(),
    default_grid=forms.native_patches,
    text_parts=(TextPart("tokenizer", 77), TextPart("tokenizer_2")),
    text_tokens=333,
    between=skips,
)
