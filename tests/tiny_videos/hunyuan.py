"""Tiny HunyuanVideo pipelines."""

# diffusers and transformers annotate more narrowly than they take.
# pyright: reportArgumentType=false

from __future__ import annotations

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn
from transformers import ByT5Tokenizer

from tests.tiny_videos import texts
from tests.tiny_videos.settings import SHORT, SIZE, TinyVideo, drawn


def hunyuan_video() -> TinyVideo:
    """A chat around the prompt, whose first 95 tokens are cut away; CLIP beside it."""
    from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE

    denoiser = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        patch_size=2,
        patch_size_t=1,
        guidance_embeds=True,
        text_embed_dim=texts.WIDTH,
        pooled_projection_dim=20,
        rope_axes_dim=(2, 2, 4),
    )
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=2,
        scaling_factor=0.7,
    ).eval()
    marks = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = texts.bytes_tokenizer(
        [DEFAULT_PROMPT_TEMPLATE["template"][:-12]], start="<|begin_of_text|>", marks=marks
    )
    pipe = diffusers.HunyuanVideoPipeline(
        text_encoder=texts.llama(),
        tokenizer=tokenizer,
        transformer=drawn(denoiser),
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=texts.clip(),
        tokenizer_2=texts.clip_tokenizer(),
    )
    more = {"true_cfg_scale": 4.0, "max_sequence_length": 200}
    return TinyVideo(pipe, SHORT | SIZE | more, {"true_cfg_scale": 1.0}, (3, 2, 3))


CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def hunyuan_video_15() -> TinyVideo:
    """A guider in place of a guidance scale; three kinds of text in one stream."""
    from diffusers.guiders import ClassifierFreeGuidance

    denoiser = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=2,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        patch_size=1,
        patch_size_t=1,
        text_embed_dim=texts.WIDTH,
        text_embed_2_dim=texts.WIDTH,
        image_embed_dim=12,
        rope_axes_dim=(2, 2, 4),
        target_size=16,
    )
    vae = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8, 8),
        layers_per_block=1,
        scaling_factor=0.7,
    ).eval()
    tokenizer = texts.bytes_tokenizer(
        ["You are a helpful assistant. Describe the video"],
        start=None,
        marks=["<|im_start|>", "<|im_end|>"],
        chat_template=CHAT,
    )
    pipe = diffusers.HunyuanVideo15Pipeline(
        text_encoder=texts.qwen(),
        tokenizer=tokenizer,
        transformer=drawn(denoiser),
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=_bytes_encoder(),
        tokenizer_2=ByT5Tokenizer(),
        guider=ClassifierFreeGuidance(guidance_scale=4.0),
    )
    pipe.tokenizer_max_length = 400
    pipe.tokenizer_2_max_length = 9
    pipe.vision_num_semantic_tokens = 5
    given = {name: value for name, value in SHORT.items() if name != "max_sequence_length"}
    return TinyVideo(pipe, given | SIZE, {}, (3, 2, 3), words=False)


def _bytes_encoder() -> nn.Module:
    from transformers import T5Config, T5EncoderModel

    return texts.local(T5EncoderModel(T5Config(**(texts._T5 | {"vocab_size": 400}))))
