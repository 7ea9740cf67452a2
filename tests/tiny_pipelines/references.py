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


def joy_image_edit() -> Any:
    """JoyImage-Edit, which makes images from text, too."""
    from diffusers import JoyImageEditPipeline

    pipe = JoyImageEditPipeline(**_joy_parts("joy_image_edit"))
    pipe.vae_image_processor = _at_own_size(pipe)
    start, several = pipe.prompt_template_encode.values()
    dropped = parts.count(pipe, start.split("{}")[0])
    assert dropped == parts.count(pipe, several.split("{}")[0] + "<|im_start|>user\n")
    pipe.prompt_template_encode_start_idx = dict.fromkeys(pipe.prompt_template_encode, dropped)
    return pipe


def joy_image_edit_plus() -> Any:
    """JoyImage-Edit Plus, whose references have sizes of their own."""
    from diffusers import JoyImageEditPlusPipeline

    pipe = JoyImageEditPlusPipeline(**_joy_parts("joy_image_edit_plus"))
    pipe.image_processor = _at_own_size(pipe)
    template = pipe.prompt_template_encode["multiple_images"]
    dropped = parts.count(pipe, template.split("{}")[0] + "<|im_start|>user\n")
    pipe.prompt_template_encode_start_idx = {"multiple_images": dropped}
    return pipe


def _joy_parts(denoiser: str) -> dict[str, Any]:
    return {
        "scheduler": parts.flow(shift=1.5),
        "vae": parts.wan_vae(4),
        "text_encoder": encoders.qwen3_vl(24, causal_lm=True),
        "tokenizer": tokenizers.qwen(),
        "transformer": parts.denoiser(denoiser),
        "processor": tokenizers.PictureProcessor(tokenizers.qwen()),
    }


def _at_own_size(pipe: Any) -> Any:
    """Images at their own size, where the pipelines bring them to about a megapixel."""
    from diffusers.pipelines.joyimage.image_processor import JoyImageEditImageProcessor

    class AtOwnSize(JoyImageEditImageProcessor):
        def get_default_height_width(
            self, image: Any, height: int | None = None, width: int | None = None
        ) -> tuple[int, int]:
            if height is not None and width is not None:
                return height, width
            image = image[0] if isinstance(image, list) else image
            return image.height, image.width

    return AtOwnSize(vae_scale_factor=pipe.vae_scale_factor_spatial)
