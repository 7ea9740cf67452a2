"""One tiny pipeline for each family, and the settings of a short run."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from diffusion_lens.testing.tiny import _draw_weights, tiny_denoiser
from tests.tiny_pipelines import encoders, tokenizers

HEIGHT, WIDTH = 4, 6
"""The image in tokens: not square."""

SIZE = (4 * HEIGHT, 4 * WIDTH)
"""In pixels, where an autoencoder halves it once and a patch has two latents on a side."""

LAYERS = (1, 2, 3)
"""Of the text encoder, where the denoiser reads several."""


@dataclass(frozen=True)
class TinyPipeline:
    """How a family's pipeline is made and run.

    Attributes:
        make: What makes it.
        pixels: Height and width of the image in pixels.
        guided: Settings with guidance; None where the pipeline has none.
        unguided: Settings without.
        settings: Further settings of every run.
        negative: Whether the pipeline takes a negative prompt.
        causal: Whether no token's embedding depends on later ones.
        padded: Whether the image's tokens are filled up.
        runs_unguided: Whether it runs without guidance with the scheduler that it has here.
    """

    make: Callable[[], Any]
    pixels: tuple[int, int]
    guided: Mapping[str, Any] | None
    unguided: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    negative: bool = True
    causal: bool = True
    padded: bool = False
    runs_unguided: bool = True


def _denoiser(name: str, **changes: Any) -> nn.Module:
    """A tiny denoiser, with some of its configuration changed."""
    found: Any = tiny_denoiser(name, batch=2)[0]
    if not changes:
        return found
    config = {key: value for key, value in found.config.items() if not key.startswith("_")}
    changed = type(found)(**(config | changes))  # from_config would drop what was left at default
    _draw_weights(changed, torch.Generator().manual_seed(0))
    return changed.eval()


def _vae(channels: int, *, kind: str = "AutoencoderKL", blocks: int = 2, **more: Any) -> Any:
    import diffusers

    config = {
        "latent_channels": channels,
        "block_out_channels": (8,) * blocks,
        "down_block_types": ("DownEncoderBlock2D",) * blocks,
        "up_block_types": ("UpDecoderBlock2D",) * blocks,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 16,
    }
    return getattr(diffusers, kind)(**(config | more)).eval()


def _kl(channels: int, **more: Any) -> Any:
    return _vae(channels, scaling_factor=0.36, shift_factor=0.11, **more)


def _qwen_vae(channels: int) -> Any:
    from diffusers import AutoencoderKLQwenImage

    return AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=channels,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.3 * number - 0.4 for number in range(channels)],
        latents_std=[1.5 + 0.5 * number for number in range(channels)],
    ).eval()


def _flux2_vae() -> Any:
    vae = _vae(1, kind="AutoencoderKLFlux2")
    vae.bn.running_mean.copy_(torch.linspace(-0.6, 0.6, 4))
    vae.bn.running_var.copy_(torch.linspace(0.5, 2.0, 4))
    return vae


def _flow(**more: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**more)


def _shifted() -> Any:
    return _flow(use_dynamic_shifting=True, base_image_seq_len=16, max_image_seq_len=64)


def _count(pipe: Any, text: str) -> int:
    """Tokens of a template's part: the real ones have the number that the pipeline names."""
    return len(pipe.tokenizer(text).input_ids)


def flux2() -> Any:
    """FLUX.2: Mistral's embeddings of three layers side by side."""
    from diffusers import Flux2Pipeline

    return Flux2Pipeline(
        scheduler=_shifted(),
        vae=_flux2_vae(),
        text_encoder=encoders.mistral3(8),
        tokenizer=tokenizers.mistral(),
        transformer=_denoiser("flux2"),
    )


def flux2_klein() -> Any:
    """FLUX.2 klein: Qwen 3's."""
    from diffusers import Flux2KleinPipeline

    return Flux2KleinPipeline(
        scheduler=_shifted(),
        vae=_flux2_vae(),
        text_encoder=encoders.qwen3(8, causal_lm=True),
        tokenizer=tokenizers.qwen(),
        transformer=_denoiser("flux2", guidance_embeds=False),
    )


def z_image() -> Any:
    """Z-Image."""
    from diffusers import ZImagePipeline

    return ZImagePipeline(
        scheduler=_flow(shift=3.0),
        vae=_kl(4),
        text_encoder=encoders.qwen3(24),
        tokenizer=tokenizers.qwen(),
        transformer=_denoiser("z_image"),
    )


def qwen_image() -> Any:
    """Qwen-Image."""
    from diffusers import QwenImagePipeline

    pipe = QwenImagePipeline(
        scheduler=_shifted(),
        vae=_qwen_vae(4),
        text_encoder=encoders.qwen25_vl(24),
        tokenizer=tokenizers.qwen(),
        transformer=_denoiser("qwen_image"),
    )
    pipe.prompt_template_encode_start_idx = _count(pipe, pipe.prompt_template_encode.split("{}")[0])
    return pipe


def krea2() -> Any:
    """Krea 2."""
    from diffusers import Krea2Pipeline

    pipe = Krea2Pipeline(
        scheduler=_shifted(),
        vae=_qwen_vae(4),
        text_encoder=encoders.qwen3_vl(24),
        tokenizer=tokenizers.qwen(),
        transformer=_denoiser("krea2"),
        text_encoder_select_layers=LAYERS,
    )
    pipe.prompt_template_encode_start_idx = _count(pipe, pipe.prompt_template_encode_prefix)
    pipe.prompt_template_encode_num_suffix_tokens = _count(pipe, pipe.prompt_template_encode_suffix)
    return pipe


def chroma() -> Any:
    """Chroma."""
    from diffusers import ChromaPipeline

    return ChromaPipeline(
        scheduler=_shifted(),
        vae=_kl(1),
        text_encoder=encoders.t5(24),
        tokenizer=tokenizers.t5(),
        transformer=_denoiser("chroma"),
    )


def hunyuan_image() -> Any:
    """HunyuanImage 2.1, with the second text that quoted words get."""
    from diffusers import (
        AdaptiveProjectedMixGuidance,
        AutoencoderKLHunyuanImage,
        HunyuanImagePipeline,
    )
    from transformers import ByT5Tokenizer

    vae = AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        spatial_compression_ratio=2,
        sample_size=16,
        scaling_factor=0.75,
    )
    pipe = HunyuanImagePipeline(
        scheduler=_flow(shift=5.0),
        vae=vae.eval(),
        text_encoder=encoders.qwen25_vl(24),
        tokenizer=tokenizers.qwen(),
        text_encoder_2=encoders.t5(8),
        tokenizer_2=ByT5Tokenizer(),
        transformer=_denoiser("hunyuan_image", text_embed_2_dim=8),
        guider=AdaptiveProjectedMixGuidance(guidance_scale=3.5),
        ocr_guider=AdaptiveProjectedMixGuidance(guidance_scale=3.5),
    )
    pipe.tokenizer_max_length = 60
    pipe.tokenizer_2_max_length = 12
    pipe.prompt_template_encode_start_idx = _count(pipe, pipe.prompt_template_encode.split("{}")[0])
    return pipe


def longcat() -> Any:
    """LongCat-Image."""
    from diffusers import LongCatImagePipeline

    pipe = LongCatImagePipeline(
        scheduler=_shifted(),
        vae=_kl(16),
        text_encoder=encoders.qwen25_vl(24),
        tokenizer=tokenizers.qwen(),
        text_processor=None,
        transformer=_denoiser("longcat", in_channels=64),
    )
    pipe.tokenizer_max_length = 60
    return pipe


def ovis() -> Any:
    """Ovis-Image."""
    from diffusers import OvisImagePipeline

    pipe = OvisImagePipeline(
        scheduler=_shifted(),
        vae=_kl(1),
        text_encoder=encoders.qwen3(24),
        tokenizer=tokenizers.qwen(),
        transformer=_denoiser("ovis"),
    )
    text = pipe._get_messages("\ue000")[0].split("\ue000")[0].rstrip()
    pipe.user_prompt_begin_id = _count(pipe, text)
    return pipe


def bria() -> Any:
    """Bria 3."""
    from diffusers import BriaPipeline

    return BriaPipeline(
        scheduler=_shifted(),
        vae=_vae(1, scaling_factor=0.36),
        text_encoder=encoders.t5(24),
        tokenizer=tokenizers.t5(),
        transformer=_denoiser("bria"),
    )


def pixart(*, sigma: bool = False) -> Any:
    """PixArt-alpha, or -sigma."""
    from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtSigmaPipeline

    return (PixArtSigmaPipeline if sigma else PixArtAlphaPipeline)(
        tokenizer=tokenizers.t5(),
        text_encoder=encoders.t5(24),
        vae=_vae(4, scaling_factor=0.36),
        transformer=_denoiser("pixart"),
        scheduler=DPMSolverMultistepScheduler(),
    )


def pixart_sigma() -> Any:
    """PixArt-sigma."""
    return pixart(sigma=True)


def lumina2() -> Any:
    """Lumina 2."""
    from diffusers import Lumina2Pipeline

    return Lumina2Pipeline(
        transformer=_denoiser("lumina2", axes_lens=(256, 16, 16)),
        scheduler=_flow(shift=6.0),
        vae=_kl(4, blocks=4),
        text_encoder=encoders.gemma2(24),
        tokenizer=tokenizers.gemma(),
    )


def auraflow() -> Any:
    """AuraFlow."""
    from diffusers import AuraFlowPipeline

    return AuraFlowPipeline(
        tokenizer=tokenizers.t5(),
        text_encoder=encoders.t5(24, many_languages=True),
        vae=_vae(4, scaling_factor=0.36),
        transformer=_denoiser("auraflow"),
        scheduler=_flow(shift=1.73),
    )


def cogview4() -> Any:
    """CogView 4."""
    from diffusers import CogView4Pipeline

    return CogView4Pipeline(
        tokenizer=tokenizers.glm(),
        text_encoder=encoders.glm(24),
        vae=_vae(4, blocks=4, scaling_factor=0.36),
        transformer=_denoiser("cogview4"),
        scheduler=_shifted(),
    )


def cogview3_plus() -> Any:
    """CogView 3+."""
    from diffusers import CogVideoXDDIMScheduler, CogView3PlusPipeline

    return CogView3PlusPipeline(
        tokenizer=tokenizers.t5(),
        text_encoder=encoders.t5(24),
        vae=_vae(4, scaling_factor=0.36),
        transformer=_denoiser("cogview3_plus"),
        scheduler=CogVideoXDDIMScheduler(),
    )


PIPELINES: dict[str, TinyPipeline] = {
    "flux2": TinyPipeline(
        flux2,
        SIZE,
        None,
        {"guidance_scale": 4.0},
        {"text_encoder_out_layers": LAYERS, "max_sequence_length": 200},
        negative=False,
    ),
    "flux2_klein": TinyPipeline(
        flux2_klein,
        SIZE,
        {"guidance_scale": 4.0},
        {"guidance_scale": 1.0},
        {"text_encoder_out_layers": LAYERS, "max_sequence_length": 60},
        negative=False,
    ),
    "z_image": TinyPipeline(
        z_image,
        SIZE,
        {"guidance_scale": 4.0},
        {"guidance_scale": 0.0},
        {"max_sequence_length": 60},
        padded=True,
    ),
    "qwen_image": TinyPipeline(
        qwen_image,
        SIZE,
        {"true_cfg_scale": 4.0},
        {"true_cfg_scale": 1.0},
        {"max_sequence_length": 60},
    ),
    "krea2": TinyPipeline(
        krea2,
        SIZE,
        {"guidance_scale": 4.0},
        {"guidance_scale": 0.0},
        {"max_sequence_length": 60},
    ),
    "chroma": TinyPipeline(
        chroma,
        SIZE,
        {"guidance_scale": 4.0},
        {"guidance_scale": 1.0},
        {"max_sequence_length": 60},
        causal=False,
    ),
    "hunyuan_image": TinyPipeline(hunyuan_image, (2 * HEIGHT, 2 * WIDTH), {}, {}),
    "longcat": TinyPipeline(
        longcat,
        SIZE,
        {"guidance_scale": 4.0},
        {"guidance_scale": 1.0},
        {"enable_prompt_rewrite": False},
    ),
    "ovis": TinyPipeline(
        ovis,
        SIZE,
        {"guidance_scale": 4.0},
        {"guidance_scale": 1.0},
        {"max_sequence_length": 60},
    ),
    "bria": TinyPipeline(
        bria,
        SIZE,
        {"guidance_scale": 4.0},
        {"guidance_scale": 1.0},
        {"max_sequence_length": 60},
        causal=False,
    ),
    "pixart": TinyPipeline(
        pixart,
        SIZE,
        {"guidance_scale": 4.0},
        {"guidance_scale": 1.0},
        {"max_sequence_length": 60, "use_resolution_binning": False},
        causal=False,
    ),
    "pixart_sigma": TinyPipeline(
        pixart_sigma,
        SIZE,
        {"guidance_scale": 4.0},
        {"guidance_scale": 1.0},
        {"max_sequence_length": 60, "use_resolution_binning": False},
        causal=False,
    ),
    "lumina2": TinyPipeline(
        lumina2,
        (16 * HEIGHT, 16 * WIDTH),
        {"guidance_scale": 4.0},
        {"guidance_scale": 1.0},
        {"max_sequence_length": 150},
    ),
    "auraflow": TinyPipeline(
        auraflow,
        SIZE,
        {"guidance_scale": 4.0},
        {"guidance_scale": 1.0},
        {"max_sequence_length": 60},
        causal=False,
    ),
    "cogview4": TinyPipeline(
        cogview4,
        (16 * HEIGHT, 16 * WIDTH),
        {"guidance_scale": 4.0},
        {"guidance_scale": 1.0},
        {"max_sequence_length": 64},
    ),
    "cogview3_plus": TinyPipeline(
        cogview3_plus,
        SIZE,
        {"guidance_scale": 4.0},
        {"guidance_scale": 1.0},
        {"max_sequence_length": 60},
        causal=False,
        runs_unguided=False,  # which diffusers has for the DPM scheduler alone
    ),
}
"""Every family's."""


def tiny_pipeline(name: str) -> Any:
    """A pipeline of its own."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stderr(io.StringIO()),
        torch.random.fork_rng(devices=[]),
    ):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        pipe = PIPELINES[name].make()
    pipe.set_progress_bar_config(disable=True)
    return pipe
