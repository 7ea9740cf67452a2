"""Pipelines whose denoisers take packed latents, and those like them."""

from __future__ import annotations

from typing import Any

from tests.tiny_pipelines import encoders, parts, tokenizers


def flux2() -> Any:
    """FLUX.2: Mistral's embeddings of three layers side by side."""
    from diffusers import Flux2Pipeline

    return Flux2Pipeline(
        scheduler=parts.shifted(),
        vae=parts.flux2_vae(),
        text_encoder=encoders.mistral3(8),
        tokenizer=tokenizers.mistral(),
        transformer=parts.denoiser("flux2"),
    )


def flux2_klein() -> Any:
    """FLUX.2 klein: Qwen 3's."""
    from diffusers import Flux2KleinPipeline

    return Flux2KleinPipeline(
        scheduler=parts.shifted(),
        vae=parts.flux2_vae(),
        text_encoder=encoders.qwen3(8, causal_lm=True),
        tokenizer=tokenizers.qwen(),
        transformer=parts.denoiser("flux2", guidance_embeds=False),
    )


def z_image() -> Any:
    """Z-Image."""
    from diffusers import ZImagePipeline

    return ZImagePipeline(
        scheduler=parts.flow(shift=3.0),
        vae=parts.kl(4),
        text_encoder=encoders.qwen3(24),
        tokenizer=tokenizers.qwen(),
        transformer=parts.denoiser("z_image"),
    )


def qwen_image() -> Any:
    """Qwen-Image."""
    from diffusers import QwenImagePipeline

    pipe = QwenImagePipeline(
        scheduler=parts.shifted(),
        vae=parts.qwen_vae(4),
        text_encoder=encoders.qwen25_vl(24),
        tokenizer=tokenizers.qwen(),
        transformer=parts.denoiser("qwen_image"),
    )
    pipe.prompt_template_encode_start_idx = parts.count(
        pipe, pipe.prompt_template_encode.split("{}")[0]
    )
    return pipe


def krea2() -> Any:
    """Krea 2."""
    from diffusers import Krea2Pipeline

    pipe = Krea2Pipeline(
        scheduler=parts.shifted(),
        vae=parts.qwen_vae(4),
        text_encoder=encoders.qwen3_vl(24),
        tokenizer=tokenizers.qwen(),
        transformer=parts.denoiser("krea2"),
        text_encoder_select_layers=parts.LAYERS,
    )
    pipe.prompt_template_encode_start_idx = parts.count(pipe, pipe.prompt_template_encode_prefix)
    pipe.prompt_template_encode_num_suffix_tokens = parts.count(
        pipe, pipe.prompt_template_encode_suffix
    )
    return pipe


def chroma() -> Any:
    """Chroma."""
    from diffusers import ChromaPipeline

    return ChromaPipeline(
        scheduler=parts.shifted(),
        vae=parts.kl(1),
        text_encoder=encoders.t5(24),
        tokenizer=tokenizers.t5(),
        transformer=parts.denoiser("chroma"),
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
        scheduler=parts.flow(shift=5.0),
        vae=vae.eval(),
        text_encoder=encoders.qwen25_vl(24),
        tokenizer=tokenizers.qwen(),
        text_encoder_2=encoders.t5(8),
        tokenizer_2=ByT5Tokenizer(),
        transformer=parts.denoiser("hunyuan_image", text_embed_2_dim=8),
        guider=AdaptiveProjectedMixGuidance(guidance_scale=3.5),
        ocr_guider=AdaptiveProjectedMixGuidance(guidance_scale=3.5),
    )
    pipe.tokenizer_max_length = 60
    pipe.tokenizer_2_max_length = 12
    pipe.prompt_template_encode_start_idx = parts.count(
        pipe, pipe.prompt_template_encode.split("{}")[0]
    )
    return pipe


def longcat() -> Any:
    """LongCat-Image."""
    from diffusers import LongCatImagePipeline

    unused: Any = None  # it writes prompts anew
    pipe = LongCatImagePipeline(
        scheduler=parts.shifted(),
        vae=parts.kl(16),
        text_encoder=encoders.qwen25_vl(24),
        tokenizer=tokenizers.qwen(),
        text_processor=unused,
        transformer=parts.denoiser("longcat", in_channels=64),
    )
    pipe.tokenizer_max_length = 60
    return pipe


def ovis() -> Any:
    """Ovis-Image."""
    from diffusers import OvisImagePipeline

    pipe = OvisImagePipeline(
        scheduler=parts.shifted(),
        vae=parts.kl(1),
        text_encoder=encoders.qwen3(24),
        tokenizer=tokenizers.qwen(),
        transformer=parts.denoiser("ovis"),
    )
    text = pipe._get_messages("\ue000")[0].split("\ue000")[0].rstrip()
    pipe.user_prompt_begin_id = parts.count(pipe, text)
    return pipe


def bria() -> Any:
    """Bria 3."""
    from diffusers import BriaPipeline

    return BriaPipeline(
        scheduler=parts.shifted(),
        vae=parts.vae(1, scaling_factor=0.36),
        text_encoder=encoders.t5(24),
        tokenizer=tokenizers.t5(),
        transformer=parts.denoiser("bria"),
    )


def bria_fibo() -> Any:
    """Bria FIBO, a token for each latent."""
    from diffusers import AutoencoderKLWan, BriaFiboPipeline
    from transformers import SmolLM3Config, SmolLM3ForCausalLM

    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, False, False],
        latents_mean=[0.3, -0.2, 0.1, 0.4],
        latents_std=[1.7, 0.6, 1.2, 2.3],
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    )
    tokenizer = tokenizers.llama()
    tokenizer.pad_token = tokenizer.eos_token
    config = SmolLM3Config(**encoders.decoder(12, num_hidden_layers=5, head_dim=6))
    return BriaFiboPipeline(
        transformer=parts.denoiser("bria_fibo"),
        scheduler=parts.shifted(),
        vae=vae.eval(),
        text_encoder=SmolLM3ForCausalLM(config).eval(),
        tokenizer=tokenizer,
    )


def nucleus() -> Any:
    """Nucleus-Image."""
    from diffusers import NucleusMoEImagePipeline

    processor: Any = tokenizers.QwenProcessor(tokenizers.qwen())
    pipe = NucleusMoEImagePipeline(
        transformer=parts.denoiser("nucleus"),
        scheduler=parts.shifted(),
        vae=parts.qwen_vae(4),
        text_encoder=encoders.qwen3_vl(24, causal_lm=True),
        processor=processor,
    )
    pipe.default_return_index = -2
    return pipe


def ideogram4() -> Any:
    """Ideogram 4, whose text is of thirteen layers; a second denoiser has none."""
    from diffusers import Ideogram4Pipeline

    width, read = 8, 13
    changes = {"in_channels": 4, "llm_features_dim": width * read}
    return Ideogram4Pipeline(
        scheduler=parts.flow(),
        vae=parts.flux2_vae(),
        text_encoder=encoders.qwen3_vl(width, num_hidden_layers=36),
        tokenizer=tokenizers.qwen(chat=tokenizers.LISTS),
        transformer=parts.denoiser("ideogram4", **changes),
        unconditional_transformer=parts.denoiser("ideogram4", **changes),
    )


def flux3() -> Any:
    """FLUX.3, which diffusers has as a modular pipeline; without what writes prompts anew."""
    from diffusers import Flux3AutoBlocks, Flux3ModularPipeline

    blocks = Flux3AutoBlocks()
    blocks.sub_blocks.pop("prompt_upsampler")
    pipe: Any = Flux3ModularPipeline(blocks=blocks)
    pipe.update_components(
        transformer=parts.denoiser("flux3"),
        scheduler=parts.flow(shift=6.93),
        vae=parts.flux2_vae(),
        text_encoder=encoders.qwen3_vl(8, causal_lm=True),
        tokenizer=tokenizers.QwenProcessor(tokenizers.qwen()),
    )
    return pipe
