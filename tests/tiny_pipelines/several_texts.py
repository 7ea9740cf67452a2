"""Pipelines with several text encoders."""

# diffusers and transformers annotate more narrowly than they take.
# pyright: reportArgumentType=false

from __future__ import annotations

from typing import Any

from tests.tiny_pipelines import encoders, parts, tokenizers
from tests.tiny_videos import texts


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
