"""One tiny pipeline of each video family, and the settings of a short run of it."""

from __future__ import annotations

import contextlib
import functools
import io
import sys
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from PIL import Image
from torch import Tensor, nn
from transformers import ByT5Tokenizer, CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from diffusion_lens.testing.tiny import draw_weights
from tests.tiny_videos import texts

PROMPT = "a red cat on the glass table"
NEGATIVE = "blurry video"


@dataclass(frozen=True)
class TinyVideo:
    """A pipeline and what is known of a run of it without the library.

    Attributes:
        pipe: The pipeline.
        settings: Arguments of a short run at a size that is not square.
        unguided: What to change for one without guidance.
        grid: Tokens (frames, height, width) of it.
        spatial: Pixels of a side that are one latent.
        frames: Frames of the video.
    """

    pipe: Any
    settings: dict[str, Any]
    unguided: dict[str, Any]
    grid: tuple[int, int, int]
    spatial: int = 8
    frames: int = 9
    words: bool = True
    size: tuple[int, int] = field(default=(32, 48))


def _wan_vae() -> nn.Module:
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
    return _drawn(getattr(diffusers, name)(**(config | more)), seed)


def _drawn(denoiser: nn.Module, seed: int = 0) -> nn.Module:
    draw_weights(denoiser, torch.Generator().manual_seed(seed))
    return denoiser.eval()


def _wan_parts(transformer: nn.Module, **more: Any) -> dict[str, Any]:
    return {
        "tokenizer": texts.t5_tokenizer(),
        "text_encoder": texts.umt5(),
        "vae": _wan_vae(),
        "scheduler": UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        "transformer": transformer,
        **more,
    }


SIZE: dict[str, Any] = {"height": 32, "width": 48, "num_frames": 9}
SHORT: dict[str, Any] = {
    "prompt": PROMPT,
    "negative_prompt": NEGATIVE,
    "num_inference_steps": 3,
    "max_sequence_length": 24,
    "output_type": "latent",
}
OFF: dict[str, Any] = {"guidance_scale": 1.0}


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


def _picture() -> Image.Image:
    pixels = torch.randint(0, 255, (32, 48, 3), generator=torch.Generator().manual_seed(0))
    return Image.fromarray(pixels.to(torch.uint8).numpy())


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
    more = {"guidance_scale": 5.0, "image": _picture(), "max_sequence_length": 512}
    return TinyVideo(pipe, SHORT | SIZE | more, OFF, (3, 2, 3))


def wan_ti2v_image() -> TinyVideo:
    """Wan 2.2 TI2V 5B with a given first frame, whose tokens have timestep 0."""
    parts = _wan_parts(_wan_denoiser(), expand_timesteps=True)
    pipe = diffusers.WanImageToVideoPipeline(**parts)
    more = {"guidance_scale": 5.0, "image": _picture()}
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
    more = {"guidance_scale": 5.0, "image": _picture(), "max_sequence_length": 512}
    return TinyVideo(pipe, SHORT | SIZE | more, OFF, (2, 2, 3), frames=5)


def skyreels_v2() -> TinyVideo:
    """Text to video."""
    denoiser = _wan_denoiser("SkyReelsV2Transformer3DModel")
    pipe = diffusers.SkyReelsV2Pipeline(**_wan_parts(denoiser))
    return TinyVideo(pipe, SHORT | SIZE | {"guidance_scale": 5.0}, OFF, (3, 2, 3))


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
        transformer=_drawn(denoiser),
    )
    more = {"height": 64, "width": 96, "num_frames": 17, "guidance_scale": 3.0}
    return TinyVideo(pipe, SHORT | more, OFF, (3, 2, 3), 32, 17, size=(64, 96))


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
        transformer=_drawn(denoiser),
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
        transformer=_drawn(denoiser),
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
    return TinyVideo(pipe, given | SIZE, {}, (3, 2, 3), 16, words=False)


def _bytes_encoder() -> nn.Module:
    from transformers import T5Config, T5EncoderModel

    return texts.local(T5EncoderModel(T5Config(**(texts._T5 | {"vocab_size": 400}))))


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
        transformer=_drawn(denoiser),
        scheduler=diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction"),
    )
    more = {"guidance_scale": 6.0, "image": _picture()}
    return TinyVideo(pipe, SHORT | SIZE | more, OFF, (3, 2, 3))


TINY_VIDEOS: dict[str, Callable[[], TinyVideo]] = {
    "wan": wan,
    "wan_i2v": wan_i2v,
    "wan_ti2v": wan_ti2v,
    "wan_ti2v_image": wan_ti2v_image,
    "ltx_video": ltx_video,
    "hunyuan_video": hunyuan_video,
    "hunyuan_video_15": hunyuan_video_15,
    "chrono_edit": chrono_edit,
    "skyreels_v2": skyreels_v2,
    "consisid": consisid,
}
"""What makes the tiny pipeline of each family that has one denoiser."""


def fresh_video(make: Callable[[], TinyVideo]) -> TinyVideo:
    """A pipeline of its own, with the same weights each time."""
    with (
        torch.random.fork_rng(devices=[]),
        warnings.catch_warnings(),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        made = make()
    made.pipe.set_progress_bar_config(disable=True)
    _without_ftfy(type(made.pipe))
    return made


def _without_ftfy(kind: type) -> None:
    """Let pipelines clean prompts without `ftfy`, which most of them call but do not require."""
    module: Any = sys.modules[kind.__module__]
    if hasattr(module, "prompt_clean") and not hasattr(module, "ftfy"):
        module.ftfy = types.SimpleNamespace(fix_text=str)


@functools.cache
def tiny_video(family: str) -> TinyVideo:
    """The pipeline that tests of a family share and must leave as it was."""
    return fresh_video(TINY_VIDEOS[family])
