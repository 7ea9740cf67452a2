"""Tiny pipelines of LTX-Video, ConsisID, Mochi and others."""

# diffusers and transformers annotate more narrowly than they take.
# pyright: reportArgumentType=false

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from tests.tiny_videos import texts
from tests.tiny_videos.settings import OFF, SHORT, SIZE, TinyVideo, drawn, picture
from tests.tiny_videos.wan import wan_vae


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


def sana_video() -> TinyVideo:
    """An instruction before the prompt, and none before a negative one."""
    denoiser = diffusers.SanaVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=16,
        num_layers=2,
        num_cross_attention_heads=4,
        cross_attention_head_dim=16,
        cross_attention_dim=64,
        caption_channels=texts.WIDTH,
        sample_size=8,
        patch_size=(1, 2, 2),
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    pipe = diffusers.SanaVideoPipeline(
        tokenizer=texts.bytes_tokenizer([], start="<bos>", marks=[]),
        text_encoder=texts.gemma2(),
        vae=wan_vae(),
        transformer=drawn(denoiser),
        scheduler=diffusers.DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=7.0
        ),
    )
    more = {"height": 64, "width": 96, "frames": 9, "guidance_scale": 5.0}
    more |= {"use_resolution_binning": False}
    bare = {"complex_human_instruction": None}
    return TinyVideo(pipe, SHORT | more, OFF, (3, 4, 6), size=(64, 96), as_negative=bare)


def easy_animate() -> TinyVideo:
    """A chat around the prompt."""
    denoiser = diffusers.EasyAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        num_layers=2,
        mmdit_layers=2,
        time_embed_dim=20,
        text_embed_dim=texts.WIDTH,
        text_embed_dim_t5=None,
        sample_height=4,
        sample_width=6,
        add_norm_text_encoder=True,
    )
    vae = diffusers.AutoencoderKLMagvit(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=2,
        scaling_factor=0.7,
    ).eval()
    tokenizer = texts.bytes_tokenizer(
        [], start=None, marks=["<|im_start|>", "<|im_end|>"], chat_template=LISTS
    )
    pipe = diffusers.EasyAnimatePipeline(
        vae=vae,
        text_encoder=texts.qwen2_vl(),
        tokenizer=tokenizer,
        transformer=drawn(denoiser),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )
    given = {name: value for name, value in SHORT.items() if name != "max_sequence_length"}
    return TinyVideo(pipe, given | SIZE | {"guidance_scale": 5.0}, OFF, (3, 2, 3))


LISTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content[0].text }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat whose messages are lists of contents."""


class Unguarded:
    """In place of NVIDIA's guardrail, which is not installed: lets all pass."""

    def to(self, *_: Any) -> None:
        """Nowhere to move."""

    def check_text_safety(self, _prompt: str) -> bool:
        """Any prompt is safe."""
        return True

    def check_video_safety(self, video: Any) -> Any:
        """Any video is safe."""
        return video


def cosmos2_image() -> Any:
    """Cosmos 2, which makes an image, with sigmas above 1."""
    return diffusers.Cosmos2TextToImagePipeline(
        text_encoder=texts.t5(),
        tokenizer=texts.t5_tokenizer(),
        transformer=drawn(
            diffusers.CosmosTransformer3DModel(
                in_channels=4, out_channels=4, extra_pos_embed_type=None, **_COSMOS
            )
        ),
        vae=wan_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        safety_checker=Unguarded(),
    )


def cosmos1() -> Any:
    """Cosmos 1, which steps twice at each step."""
    vae = diffusers.AutoencoderKLCosmos(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        num_layers=1,
        attention_resolutions=(),
        resolution=64,
        latents_mean=None,
        latents_std=None,
    )
    return diffusers.CosmosTextToWorldPipeline(
        text_encoder=texts.t5(),
        tokenizer=texts.t5_tokenizer(),
        transformer=drawn(
            diffusers.CosmosTransformer3DModel(
                in_channels=4, out_channels=4, extra_pos_embed_type="learnable", **_COSMOS
            )
        ),
        vae=vae.eval(),
        scheduler=diffusers.EDMEulerScheduler(
            sigma_max=80, sigma_schedule="karras", prediction_type="epsilon"
        ),
        safety_checker=Unguarded(),
    )


_COSMOS: dict[str, Any] = {
    "num_attention_heads": 4,
    "attention_head_dim": 12,
    "num_layers": 2,
    "mlp_ratio": 2.0,
    "text_embed_dim": texts.WIDTH,
    "adaln_lora_dim": 8,
    "max_size": (4, 16, 16),
    "concat_padding_mask": False,  # which needs torchvision
}


def cosmos25() -> TinyVideo:
    """A chat around the prompt, all layers of Qwen side by side, and a timestep for each frame."""
    denoiser = diffusers.CosmosTransformer3DModel(
        in_channels=4 + 1,
        out_channels=4,
        extra_pos_embed_type=None,
        use_crossattn_projection=True,
        crossattn_proj_in_channels=3 * texts.WIDTH,
        encoder_hidden_states_channels=texts.WIDTH,
        **_COSMOS,
    )
    tokenizer = texts.bytes_tokenizer(
        [], start=None, marks=["<|im_start|>", "<|im_end|>"], chat_template=LISTS
    )
    pipe = diffusers.Cosmos2_5_PredictBasePipeline(
        text_encoder=texts.qwen_vl(),
        tokenizer=tokenizer,
        transformer=drawn(denoiser),
        vae=wan_vae(),
        scheduler=diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
        ),
        safety_checker=Unguarded(),
    )
    more = {"guidance_scale": 5.0, "max_sequence_length": 160}
    return TinyVideo(pipe, SHORT | SIZE | more, OFF, (3, 2, 3))


def allegro() -> TinyVideo:
    """T5's embeddings with an axis more; an autoencoder that works in tiles alone."""
    denoiser = diffusers.AllegroTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        cross_attention_dim=48,
        caption_channels=texts.WIDTH,
        sample_height=4,
        sample_width=6,
        sample_frames=3,
    )
    vae = diffusers.AutoencoderKLAllegro(
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=2,
        sample_size=16,
        scaling_factor=0.7,
    ).eval()
    vae.enable_tiling()
    pipe = diffusers.AllegroPipeline(
        tokenizer=texts.t5_tokenizer(),
        text_encoder=texts.t5(),
        vae=vae,
        transformer=drawn(denoiser),
        scheduler=diffusers.EulerAncestralDiscreteScheduler(),
    )
    more = {"guidance_scale": 5.0, "num_frames": 8}
    return TinyVideo(pipe, SHORT | SIZE | more, OFF, (2, 2, 3), frames=8)


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
        vae=wan_vae(),
        text_encoder=texts.t5_gemma2(),
        tokenizer=tokenizer,
        transformer=drawn(denoiser),
        guider=ClassifierFreeGuidance(guidance_scale=4.0),
    )
    return TinyVideo(pipe, SHORT | SIZE, {}, (3, 2, 3))


def mochi() -> TinyVideo:
    """Sigmas that grow from 0 to 1, 6 frames to one, and padding that is dropped."""
    denoiser = diffusers.MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=3,
        pooled_projection_dim=20,
        in_channels=12,
        text_embed_dim=texts.WIDTH,
        time_embed_dim=12,
    )
    vae = diffusers.AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        scaling_factor=0.7,
    ).eval()
    pipe = diffusers.MochiPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        vae=vae,
        text_encoder=texts.t5(),
        tokenizer=texts.t5_tokenizer(),
        transformer=drawn(denoiser),
    )
    more = {"num_frames": 13, "guidance_scale": 4.5}
    return TinyVideo(pipe, SHORT | SIZE | more, OFF, (3, 2, 3), frames=13, fewest=2)
