"""BriaFiboTransformer2DModel: Flux's blocks, with a layer of the text encoder for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from diffusion_lens.architectures import chats, forms
from diffusion_lens.architectures.flux import DOUBLE
from diffusion_lens.architectures.flux_copies import BRIA
from diffusion_lens.architectures.forms import TXT_IMG
from diffusion_lens.architectures.spec import Gate, TextPart


def next_layer(_denoiser: nn.Module, _block: int) -> Mapping[str, str]:
    """Half of the text's channels are replaced before every block."""
    return {"txt": "half of its channels are replaced by a layer of the text encoder"}


BRIA_FIBO = replace(
    BRIA,
    denoiser="BriaFiboTransformer2DModel",
    family="Bria FIBO",
    blocks={
        "BriaFiboTransformerBlock": DOUBLE,
        "BriaFiboSingleTransformerBlock": forms.parallel(
            TXT_IMG, "proj_out", Gate("norm", 1), within="hidden_states", clamped=True
        ),
    },
    text_parts=(TextPart("tokenizer", padded=False, before=chats.none_alone),),
    text_tokens=3000,
    guidance="batched",
    branches=("uncond", "cond"),
    between=next_layer,
    concepts=None,
    without_concepts="half of every block's text is new from a layer of the text encoder",
)
