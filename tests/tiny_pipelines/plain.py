"""Pipelines whose denoisers take latents as the autoencoder has them."""

from __future__ import annotations

from typing import Any

from tests.tiny_pipelines import encoders, parts, tokenizers
from tests.tiny_videos import texts


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


def kandinsky5() -> Any:
    """Kandinsky 5, whose images are videos of one frame."""
    from diffusers import Kandinsky5T2IPipeline

    pipe = Kandinsky5T2IPipeline(
        transformer=parts.denoiser("kandinsky5"),
        vae=parts.vae(4, blocks=4, scaling_factor=0.36),
        text_encoder=encoders.qwen25_vl(24),
        tokenizer=texts.Processor(tokenizers.qwen()),
        text_encoder_2=texts.clip(),
        tokenizer_2=texts.clip_tokenizer(),
        scheduler=parts.flow(shift=3.0),
    )
    pipe.prompt_template_encode_start_idx = parts.count(pipe, pipe.prompt_template.split("{}")[0])
    pipe.resolutions = [(96, 64)]
    return pipe


def hidream() -> Any:
    """HiDream: T5, all layers of Llama, and two of CLIP beside them."""
    from diffusers import HiDreamImagePipeline
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    clip = CLIPTextConfig(
        vocab_size=600,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=10,
        max_position_embeddings=248,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
    )
    pipe = HiDreamImagePipeline(
        scheduler=parts.flow(shift=3.0),
        vae=parts.kl(4),
        text_encoder=CLIPTextModelWithProjection(clip).eval(),
        tokenizer=texts.clip_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(clip).eval(),
        tokenizer_2=texts.clip_tokenizer(),
        text_encoder_3=encoders.t5(24),
        tokenizer_3=tokenizers.t5(),
        text_encoder_4=encoders.llama(12, layers=4),
        tokenizer_4=tokenizers.llama(),
        transformer=parts.denoiser("hidream"),
    )
    pipe.default_sample_size = 10  # the images that it makes have about its area
    return pipe
