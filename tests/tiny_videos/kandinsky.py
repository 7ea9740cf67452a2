"""Tiny Kandinsky 5 pipelines."""

# diffusers and transformers annotate more narrowly than they take.
# pyright: reportArgumentType=false

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler

from tests.tiny_videos import texts
from tests.tiny_videos.settings import OFF, SHORT, SIZE, TinyVideo, drawn


def kandinsky5() -> TinyVideo:
    """A chat around the prompt, whose first tokens are cut away; a place for given frames."""
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=2,
        scaling_factor=0.7,
    ).eval()
    pipe = diffusers.Kandinsky5T2VPipeline(
        **_texts(), transformer=_denoiser(visual_cond=True), vae=vae, scheduler=_scheduler()
    )
    pipe.prompt_template_encode_start_idx = _dropped(pipe)
    return TinyVideo(pipe, SHORT | SIZE | {"guidance_scale": 5.0}, OFF, (3, 2, 3))


def _texts() -> dict[str, Any]:
    tokenizer = texts.bytes_tokenizer(
        ["You are a prompt engineer. Describe the video in detail."],
        start=None,
        marks=["<|im_start|>", "<|im_end|>"],
    )
    return {
        "text_encoder": texts.qwen_vl(),
        "tokenizer": texts.Processor(tokenizer),
        "text_encoder_2": texts.clip(),
        "tokenizer_2": texts.clip_tokenizer(),
    }


def _denoiser(**more: Any) -> Any:
    return drawn(
        diffusers.Kandinsky5Transformer3DModel(
            in_visual_dim=4,
            out_visual_dim=4,
            in_text_dim=texts.WIDTH,
            in_text_dim2=20,
            time_dim=16,
            model_dim=32,
            ff_dim=40,
            num_text_blocks=1,
            num_visual_blocks=2,
            axes_dims=(2, 2, 4),
            **more,
        )
    )


def _scheduler() -> Any:
    return FlowMatchEulerDiscreteScheduler(shift=5.0)


def _dropped(pipe: Any) -> int:
    """Tokens of the template's beginning: the real one has the number that the pipeline names."""
    return len(pipe.tokenizer(pipe.prompt_template.split("{}")[0]).input_ids)
