"""Pipelines whose denoisers take latents as the autoencoder has them."""

# diffusers annotates more narrowly than it takes.
# pyright: reportArgumentType=false

from __future__ import annotations

from typing import Any

from tests.tiny_pipelines import encoders, parts, tokenizers


def pixart(*, sigma: bool = False) -> Any:
    """PixArt-alpha, or -sigma."""
    from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtSigmaPipeline

    scheduler: Any = DPMSolverMultistepScheduler()
    return (PixArtSigmaPipeline if sigma else PixArtAlphaPipeline)(
        tokenizer=tokenizers.t5(),
        text_encoder=encoders.t5(24),
        vae=parts.vae(4, scaling_factor=0.36),
        transformer=parts.denoiser("pixart"),
        scheduler=scheduler,
    )


def pixart_sigma() -> Any:
    """PixArt-sigma."""
    return pixart(sigma=True)


def lumina2() -> Any:
    """Lumina 2."""
    from diffusers import Lumina2Pipeline

    return Lumina2Pipeline(
        transformer=parts.denoiser("lumina2", axes_lens=(256, 16, 16)),
        scheduler=parts.flow(shift=6.0),
        vae=parts.kl(4, blocks=4),
        text_encoder=encoders.gemma2(24),
        tokenizer=tokenizers.gemma(),
    )


def auraflow() -> Any:
    """AuraFlow."""
    from diffusers import AuraFlowPipeline

    return AuraFlowPipeline(
        tokenizer=tokenizers.t5(),
        text_encoder=encoders.t5(24, many_languages=True),
        vae=parts.vae(4, scaling_factor=0.36),
        transformer=parts.denoiser("auraflow"),
        scheduler=parts.flow(shift=1.73),
    )


def cogview4() -> Any:
    """CogView 4."""
    from diffusers import CogView4Pipeline

    return CogView4Pipeline(
        tokenizer=tokenizers.glm(),
        text_encoder=encoders.glm(24),
        vae=parts.vae(4, blocks=4, scaling_factor=0.36),
        transformer=parts.denoiser("cogview4"),
        scheduler=parts.shifted(),
    )


def cogview3_plus() -> Any:
    """CogView 3+."""
    from diffusers import CogVideoXDDIMScheduler, CogView3PlusPipeline

    return CogView3PlusPipeline(
        tokenizer=tokenizers.t5(),
        text_encoder=encoders.t5(24),
        vae=parts.vae(4, scaling_factor=0.36),
        transformer=parts.denoiser("cogview3_plus"),
        scheduler=CogVideoXDDIMScheduler(),
    )


def hunyuan_dit() -> Any:
    """HunyuanDiT, with BERT and T5."""
    from diffusers import DDPMScheduler, HunyuanDiTPipeline

    return HunyuanDiTPipeline(
        vae=parts.vae(4, blocks=4, scaling_factor=0.36),
        text_encoder=encoders.bert(20),
        tokenizer=tokenizers.bert(),
        transformer=parts.denoiser("hunyuan_dit", text_len=77, text_len_t5=256),
        scheduler=DDPMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        text_encoder_2=encoders.t5(24),
        tokenizer_2=tokenizers.t5(),
    )
