"""Tiny pipelines of LTX-2: a video and its sound."""

# diffusers and transformers annotate more narrowly than they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
from torch import nn
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from tests.tiny_videos import texts
from tests.tiny_videos.settings import SHORT, TinyVideo, drawn, picture

WIDTH = 16
LAYERS = 2
REGISTERS = 8
HOP = 400
"""So that there are seven tokens of sound, and eighteen of the video."""

GUIDED: dict[str, Any] = {
    "guidance_scale": 3.0,
    "audio_guidance_scale": 4.0,
    "stg_scale": 0.0,
    "audio_stg_scale": 0.0,
    "modality_scale": 1.0,
    "audio_modality_scale": 1.0,
}
"""By the negative prompt alone."""

OFF = {"guidance_scale": 1.0, "audio_guidance_scale": 1.0}


def gemma3() -> nn.Module:
    """LTX-2's text encoder, whose every row tells of its own token alone.

    The connectors divide by the mean and the range of all tokens: here the same for all prompts,
    since a token is as many 1 as -1, and the last hidden state is 0.
    """
    text: dict[str, Any] = {
        "vocab_size": 900,
        "hidden_size": WIDTH,
        "intermediate_size": 16,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "pad_token_id": 0,
    }
    vision = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 8,
        "patch_size": 4,
    }
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    encoder = texts.local(Gemma3ForConditionalGeneration(config))
    signs = torch.rand(900, WIDTH).argsort(-1) % 2 * 2.0 - 1.0
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if name.endswith("language_model.embed_tokens.weight"):
                weight.copy_(signs)
            elif name.endswith("down_proj.weight"):
                weight.zero_()
            elif name.endswith("language_model.norm.weight"):
                weight.fill_(-1.0)  # one more than it is, is the factor
    return encoder


def connectors(registers: int | None = REGISTERS) -> nn.Module:
    """What takes padding away and puts registers behind; here no row reads another one."""
    sizes = {
        f"{one}_connector_{name}": value
        for one in ("video", "audio")
        for name, value in {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": 1,
            "num_learnable_registers": registers,
        }.items()
    }
    made = LTX2TextConnectors(caption_channels=WIDTH, text_proj_in_factor=LAYERS + 1, **sizes)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if ".to_out." in name:
                weight.zero_()
    return made.eval()


def parts(**more: Any) -> dict[str, Any]:
    """The components of its pipelines."""
    denoiser = diffusers.LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        audio_hop_length=HOP,
        num_layers=2,
        caption_channels=WIDTH,
    )
    vae = diffusers.AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 16, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        scaling_factor=0.7,
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    ).eval()
    vae.latents_mean.copy_(torch.tensor([0.3, -0.2, 0.1, 0.4]))
    vae.latents_std.copy_(torch.tensor([1.7, 0.6, 1.2, 2.3]))
    audio_vae = diffusers.AutoencoderKLLTX2Audio(
        base_channels=4,
        ch_mult=(1, 1, 1),
        num_res_blocks=1,
        resolution=32,
        latent_channels=2,
        mel_hop_length=HOP,
        mel_bins=8,
    ).eval()
    audio_vae.latents_mean.copy_(torch.tensor([0.2, -0.1, 0.3, 0.1]))
    vocoder = LTX2Vocoder(
        in_channels=2 * 8,
        hidden_channels=8,
        upsample_kernel_sizes=[4],
        upsample_factors=[2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1]],
    )
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": vae,
        "audio_vae": audio_vae,
        "text_encoder": gemma3(),
        "tokenizer": texts.bytes_tokenizer([], start="<bos>", marks=[], padding_side="left"),
        "connectors": connectors(),
        "transformer": drawn(denoiser),
        "vocoder": vocoder.eval(),
        **more,
    }


def _made(pipe: Any, **more: Any) -> TinyVideo:
    size = {"height": 64, "width": 96, "num_frames": 17}
    return TinyVideo(pipe, SHORT | size | GUIDED | more, OFF, (3, 2, 3), 17, size=(64, 96))


def ltx2() -> TinyVideo:
    """Text to a video and its sound."""
    return _made(diffusers.LTX2Pipeline(**parts()))


def ltx2_image() -> TinyVideo:
    """With a given first frame, whose tokens have timestep 0."""
    return _made(diffusers.LTX2ImageToVideoPipeline(**parts()), image=picture(), image_crf=0)
