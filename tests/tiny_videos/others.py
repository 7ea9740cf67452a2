"""Tiny pipelines of LTX-Video, ConsisID and Motif-Video."""

# diffusers and transformers annotate more narrowly than they take.
# pyright: reportArgumentType=false

from __future__ import annotations

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from tests.tiny_videos import texts, wan
from tests.tiny_videos.settings import OFF, SHORT, SIZE, TinyVideo, drawn, picture


def ltx_video() -> TinyVideo:
    """Packed latents, 32 pixels and 8 frames to one."""
    denoiser = diffusers.LTXVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=texts.WIDTH,
    )
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, True, False),
        decoder_spatio_temporal_scaling=(True, True, True, False),
        scaling_factor=1.0,  # image to video leaves another one out
    ).eval()
    vae.latents_mean.copy_(torch.tensor([0.3, -0.2, 0.1, 0.4]))
    vae.latents_std.copy_(torch.tensor([1.7, 0.6, 1.2, 2.3]))
    pipe = diffusers.LTXPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        text_encoder=texts.t5(),
        tokenizer=texts.t5_tokenizer(),
        transformer=drawn(denoiser),
    )
    more = {"height": 64, "width": 96, "num_frames": 17, "guidance_scale": 3.0}
    return TinyVideo(pipe, SHORT | more, OFF, (3, 2, 3), 17, size=(64, 96))


def consisid() -> TinyVideo:
    """A given first frame, without a face."""
    denoiser = diffusers.ConsisIDTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=8,
        out_channels=4,
        time_embed_dim=20,
        text_embed_dim=texts.WIDTH,
        num_layers=2,
        sample_height=4,
        sample_width=6,
        sample_frames=9,
        max_text_seq_length=24,
        is_train_face=False,
        use_rotary_positional_embeddings=True,
    )
    vae = diffusers.AutoencoderKLCogVideoX(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=2,
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        scaling_factor=0.7,
    ).eval()
    # From its module: at the top there is only a demand for OpenCV, which draws its key points.
    from diffusers.pipelines.consisid.pipeline_consisid import ConsisIDPipeline

    pipe = ConsisIDPipeline(
        tokenizer=texts.t5_tokenizer(),
        text_encoder=texts.t5(),
        vae=vae,
        transformer=drawn(denoiser),
        scheduler=diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction"),
    )
    more = {"guidance_scale": 6.0, "image": picture()}
    return TinyVideo(pipe, SHORT | SIZE | more, OFF, (3, 2, 3))


def motif_video() -> TinyVideo:
    """A guider; a condition and a mask beside the latents; a tokenizer that pads in front."""
    from diffusers.guiders import ClassifierFreeGuidance

    denoiser = diffusers.MotifVideoTransformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=texts.WIDTH,
        rope_axes_dim=(4, 2, 2),
    )
    tokenizer = texts.bytes_tokenizer(["a video"], start="<bos>", marks=[], padding_side="left")
    pipe = diffusers.MotifVideoPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        vae=wan.vae(),
        text_encoder=texts.t5_gemma2(),
        tokenizer=tokenizer,
        transformer=drawn(denoiser),
        guider=ClassifierFreeGuidance(guidance_scale=4.0),
    )
    return TinyVideo(pipe, SHORT | SIZE, {}, (3, 2, 3))
