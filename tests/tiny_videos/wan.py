"""Tiny Wan pipelines, and those of its near copies."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import UniPCMultistepScheduler
from torch import nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from tests.tiny_videos import texts
from tests.tiny_videos.settings import OFF, SHORT, SIZE, TinyVideo, drawn, picture


def wan_vae() -> nn.Module:
    """Wan 2.1's autoencoder."""
    return diffusers.AutoencoderKLWan(
        base_dim=3,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.3, -0.2, 0.1, 0.4],
        latents_std=[1.7, 0.6, 1.2, 2.3],
    ).eval()


def _wan_denoiser(name: str = "WanTransformer3DModel", seed: int = 0, **more: Any) -> nn.Module:
    config: dict[str, Any] = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 4,
        "attention_head_dim": 8,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": texts.WIDTH,
        "freq_dim": 16,
        "ffn_dim": 40,
        "num_layers": 2,
        "rope_max_seq_len": 32,
    }
    return drawn(getattr(diffusers, name)(**(config | more)), seed)


def _wan_parts(transformer: nn.Module, **more: Any) -> dict[str, Any]:
    return {
        "tokenizer": texts.t5_tokenizer(),
        "text_encoder": texts.umt5(),
        "vae": wan_vae(),
        "scheduler": UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        "transformer": transformer,
        **more,
    }


def wan() -> TinyVideo:
    """Text to video."""
    pipe = diffusers.WanPipeline(**_wan_parts(_wan_denoiser()))
    return TinyVideo(pipe, SHORT | SIZE | {"guidance_scale": 5.0}, OFF, (3, 2, 3))


def wan_two() -> TinyVideo:
    """Wan 2.2 A14B: another denoiser below a noise level."""
    parts = _wan_parts(_wan_denoiser(), transformer_2=_wan_denoiser(seed=1), boundary_ratio=0.875)
    pipe = diffusers.WanPipeline(**parts)
    return TinyVideo(pipe, SHORT | SIZE | {"guidance_scale": 5.0}, OFF, (3, 2, 3))


def wan_ti2v() -> TinyVideo:
    """Wan 2.2 TI2V 5B: a timestep for each token."""
    pipe = diffusers.WanPipeline(**_wan_parts(_wan_denoiser(), expand_timesteps=True))
    return TinyVideo(pipe, SHORT | SIZE | {"guidance_scale": 5.0}, OFF, (3, 2, 3))


def _image_parts() -> dict[str, Any]:
    config = CLIPVisionConfig(
        hidden_size=12,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    size = {"height": 16, "width": 16}
    processor = CLIPImageProcessor(size=size, crop_size=size)
    return {"image_encoder": CLIPVisionModel(config).eval(), "image_processor": processor}


def wan_i2v() -> TinyVideo:
    """Image to video: the image is attended to beside the text."""
    denoiser = _wan_denoiser(in_channels=12, image_dim=12, added_kv_proj_dim=32)
    pipe = diffusers.WanImageToVideoPipeline(**_wan_parts(denoiser, **_image_parts()))
    # Of the class: the text beside an image is taken for the last 512 tokens.
    more = {"guidance_scale": 5.0, "image": picture(), "max_sequence_length": 512}
    return TinyVideo(pipe, SHORT | SIZE | more, OFF, (3, 2, 3))


def wan_ti2v_image() -> TinyVideo:
    """Wan 2.2 TI2V 5B with a given first frame, whose tokens have timestep 0."""
    parts = _wan_parts(_wan_denoiser(), expand_timesteps=True)
    pipe = diffusers.WanImageToVideoPipeline(**parts)
    more = {"guidance_scale": 5.0, "image": picture()}
    return TinyVideo(pipe, SHORT | SIZE | more, OFF, (3, 2, 3))


def chrono_edit() -> TinyVideo:
    """An edit as the last of five frames."""
    denoiser = _wan_denoiser(
        "ChronoEditTransformer3DModel",
        in_channels=12,
        image_dim=12,
        added_kv_proj_dim=32,
        rope_temporal_skip_len=8,
    )
    pipe = diffusers.ChronoEditPipeline(**_wan_parts(denoiser, **_image_parts()))
    more = {"guidance_scale": 5.0, "image": picture(), "max_sequence_length": 512}
    return TinyVideo(pipe, SHORT | SIZE | more, OFF, (2, 2, 3), frames=5)


def skyreels_v2() -> TinyVideo:
    """Text to video."""
    denoiser = _wan_denoiser("SkyReelsV2Transformer3DModel")
    pipe = diffusers.SkyReelsV2Pipeline(**_wan_parts(denoiser))
    return TinyVideo(pipe, SHORT | SIZE | {"guidance_scale": 5.0}, OFF, (3, 2, 3))


def wan_vace() -> TinyVideo:
    """A control beside the video: here a grey one."""
    denoiser = _wan_denoiser(
        "WanVACETransformer3DModel", vace_layers=(0,), vace_in_channels=2 * 4 + 64
    )
    pipe = diffusers.WanVACEPipeline(**_wan_parts(denoiser))
    return TinyVideo(pipe, SHORT | SIZE | {"guidance_scale": 5.0}, OFF, (3, 2, 3))


def wan_animate() -> TinyVideo:
    """A person's image, poses and faces; a frame of latents for the image before the video's."""
    denoiser = _wan_denoiser(
        "WanAnimateTransformer3DModel",
        in_channels=12,
        latent_channels=4,
        image_dim=12,
        added_kv_proj_dim=32,
        motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8},
        motion_encoder_size=16,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=16,
        face_encoder_hidden_dim=16,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
    )
    pipe = diffusers.WanAnimatePipeline(**_wan_parts(denoiser, **_image_parts()))
    more = {
        "guidance_scale": 5.0,
        "image": picture(),
        "pose_video": [picture()] * 9,
        "face_video": [picture().resize((16, 16))] * 9,
        "segment_frame_length": 9,
        "max_sequence_length": 512,
    }
    size = {name: SIZE[name] for name in ("height", "width")}
    return TinyVideo(pipe, SHORT | size | more, OFF, (4, 2, 3), before=1)
