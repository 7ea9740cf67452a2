"""Pipelines that are given an image beside the prompt."""

# diffusers and transformers annotate more narrowly than they take.
# pyright: reportArgumentType=false

from __future__ import annotations

from typing import Any

from tests.tiny_pipelines import encoders, packed, parts, tokenizers
from tests.tiny_videos import texts


def qwen_edit() -> Any:
    """Qwen-Image-Edit, whose text has the given image before the prompt."""
    from diffusers import QwenImageEditPipeline

    pipe = QwenImageEditPipeline(
        **_qwen_parts(), processor=tokenizers.PictureProcessor(tokenizers.qwen())
    )
    pipe.prompt_template_encode_start_idx = 5
    return pipe


def qwen_layered() -> Any:
    """Qwen-Image-Layered, which makes an image and its layers."""
    from diffusers import QwenImageLayeredPipeline

    pipe = QwenImageLayeredPipeline(
        **_qwen_parts(use_additional_t_cond=True, use_layer3d_rope=True),
        processor=tokenizers.PictureProcessor(tokenizers.qwen()),
    )
    pipe.prompt_template_encode_start_idx = parts.count(
        pipe, pipe.prompt_template_encode.split("{}")[0]
    )
    return pipe


def _qwen_parts(**changes: Any) -> dict[str, Any]:
    return {
        "scheduler": parts.shifted(),
        "vae": parts.qwen_vae(4),
        "text_encoder": encoders.qwen25_vl(24),
        "tokenizer": tokenizers.qwen(),
        "transformer": parts.denoiser("qwen_image", **changes),
    }


def flux_kontext() -> Any:
    """FLUX.1 Kontext: the given image's tokens behind the image's own."""
    from diffusers import FluxKontextPipeline

    return FluxKontextPipeline(**_flux_parts(4))


def flux_fill() -> Any:
    """FLUX.1 Fill: the given image and its mask in further channels."""
    from diffusers import FluxFillPipeline

    # Packed, the image has 4 channels, the masked one 4, and the mask as many as a token's pixels.
    return FluxFillPipeline(**_flux_parts(4 + 4 + 16, out_channels=4))


def flux_control() -> Any:
    """FLUX.1 Control: the given image in further channels."""
    from diffusers import FluxControlPipeline

    return FluxControlPipeline(**_flux_parts(8, out_channels=4))


def _flux_parts(channels: int, **changes: Any) -> dict[str, Any]:
    return {
        "scheduler": parts.shifted(),
        "vae": parts.kl(1),
        "text_encoder": texts.clip(),
        "tokenizer": texts.clip_tokenizer(),
        "text_encoder_2": encoders.t5(24),
        "tokenizer_2": tokenizers.t5(),
        "transformer": parts.denoiser("flux", in_channels=channels, **changes),
    }


def flux2_klein_kv() -> Any:
    """FLUX.2 klein KV: keys and values of the given image kept from the first step."""
    from diffusers import Flux2KleinKVPipeline

    plain = packed.flux2_klein()
    return Flux2KleinKVPipeline(
        scheduler=plain.scheduler,
        vae=plain.vae,
        text_encoder=plain.text_encoder,
        tokenizer=plain.tokenizer,
        transformer=plain.transformer,
    )
