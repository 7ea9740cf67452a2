"""Pipelines whose denoisers take latents as the autoencoder has them."""

# diffusers annotates more narrowly than it takes.
# pyright: reportArgumentType=false

from __future__ import annotations

import types
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


def sana() -> Any:
    """Sana, with an instruction before the prompt."""
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline

    sides = (8,) * 5
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=sides,
        decoder_block_out_channels=sides,
        encoder_layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        encoder_qkv_multiscales=((),) * 5,
        decoder_qkv_multiscales=((),) * 5,
        scaling_factor=0.41,
    )
    scheduler: Any = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return SanaPipeline(
        tokenizer=tokenizers.gemma(),
        text_encoder=encoders.gemma2(24),
        vae=vae.eval(),
        transformer=parts.denoiser("sana"),
        scheduler=scheduler,
    )


def ernie_image() -> Any:
    """ERNIE-Image, without the model that writes prompts anew."""
    from diffusers import ErnieImagePipeline

    tokenizer = tokenizers.llama()
    tokenizer.model_max_length = 60
    return ErnieImagePipeline(
        transformer=parts.denoiser("ernie_image"),
        vae=parts.flux2_vae(),
        text_encoder=encoders.mistral3(24).model,
        tokenizer=tokenizer,
        scheduler=parts.flow(shift=4.0),
    )


def prx() -> Any:
    """PRX."""
    from diffusers.pipelines.prx import pipeline_prx
    from transformers.models.t5gemma.configuration_t5gemma import T5GemmaModuleConfig
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

    module: Any = pipeline_prx
    if not hasattr(module, "ftfy"):  # which it calls but does not require
        module.ftfy = types.SimpleNamespace(fix_text=str)
    config: Any = T5GemmaModuleConfig(**encoders.decoder(24, dropout_rate=0.0))
    tokenizer = tokenizers.gemma()
    tokenizer.model_max_length = 60
    return pipeline_prx.PRXPipeline(
        transformer=parts.denoiser("prx"),
        scheduler=parts.flow(shift=3.0),
        text_encoder=T5GemmaEncoder(config).eval(),
        tokenizer=tokenizer,
        vae=parts.kl(4),
    )


def sana_sprint() -> Any:
    """SANA-Sprint: the guidance is embedded, and latents are scaled to the data's deviation."""
    from diffusers import SanaSprintPipeline, SCMScheduler

    parts_of = {**sana().components, "scheduler": SCMScheduler()}
    parts_of["transformer"] = parts.denoiser("sana", guidance_embeds=True)
    return SanaSprintPipeline(**parts_of)


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
