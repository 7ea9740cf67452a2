"""The toy models with fresh weights: plain diffusers pipelines of small, real components."""

from typing import TYPE_CHECKING, Any

import torch

from diffusion_lens.toys.codec import half_codec, pixel_codec
from diffusion_lens.toys.tokenizers import (
    END,
    MAX_LENGTH,
    PAD,
    START,
    UNKNOWN,
    VOCABULARY,
    clip_tokenizer,
    t5_tokenizer,
)

if TYPE_CHECKING:
    from diffusers import FluxPipeline, StableDiffusionPipeline
    from transformers import CLIPTextModel, T5EncoderModel


def _clip_encoder(*, rows: int, width: int, layers: int) -> "CLIPTextModel":
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=rows,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        projection_dim=width,
        bos_token_id=START,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    config._attn_implementation = "eager"
    return CLIPTextModel(config)


def _t5_encoder(*, width: int, layers: int) -> "T5EncoderModel":
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=width,
        d_kv=width // 4,
        num_heads=4,
        d_ff=2 * width,
        num_layers=layers,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=PAD,
        eos_token_id=END,
        is_encoder_decoder=False,
        use_cache=False,
    )
    config._attn_implementation = "eager"
    return T5EncoderModel(config)


def unet_pipeline(
    *, channels: tuple[int, ...] = (48, 64, 80), heads: int = 4, text_width: int = 128
) -> "StableDiffusionPipeline":
    """A Stable Diffusion pipeline with a small UNet, all weights fresh.

    Cross-attention sits at every resolution: with the defaults 10 layers of 4 heads.

    Args:
        channels: Width at 16 x 16, 8 x 8 and 4 x 4 latent pixels; multiples of 16.
        heads: Heads of each attention layer.
        text_width: Width of the text encoder.

    Returns:
        The pipeline; it predicts velocity on a schedule that ends in pure noise.
    """
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * len(channels),
        up_block_types=("CrossAttnUpBlock2D",) * len(channels),
        cross_attention_dim=text_width,
        attention_head_dim=heads,
        norm_num_groups=16,
        use_linear_projection=True,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,
    )
    tokenizer = clip_tokenizer()
    components: dict[str, Any] = {
        "vae": half_codec(),
        "text_encoder": _clip_encoder(rows=len(tokenizer), width=text_width, layers=2),
        "tokenizer": tokenizer,
        "unet": unet,
        "scheduler": scheduler,
        "safety_checker": None,
        "feature_extractor": None,
    }
    return StableDiffusionPipeline(**components, requires_safety_checker=False)


def mmdit_pipeline(
    *,
    double_blocks: int = 3,
    single_blocks: int = 2,
    heads: int = 4,
    text_width: int = 96,
    pooled_width: int = 32,
) -> "FluxPipeline":
    """A Flux pipeline with a small transformer on 16 x 16 image tokens, all weights fresh.

    Args:
        double_blocks: Blocks in which image and text have weights of their own.
        single_blocks: Blocks that treat both alike.
        heads: Heads of each attention layer, of 32 dimensions each.
        text_width: Width of the T5 encoder.
        pooled_width: Width of the CLIP encoder, whose pooled output modulates every block.

    Returns:
        The pipeline.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=12,
        num_layers=double_blocks,
        num_single_layers=single_blocks,
        attention_head_dim=32,
        num_attention_heads=heads,
        joint_attention_dim=text_width,
        pooled_projection_dim=pooled_width,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )
    tokenizer = clip_tokenizer()
    components: dict[str, Any] = {
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=1.0),
        "vae": pixel_codec(),
        "text_encoder": _clip_encoder(rows=len(tokenizer), width=pooled_width, layers=1),
        "tokenizer": tokenizer,
        "text_encoder_2": _t5_encoder(width=text_width, layers=2),
        "tokenizer_2": t5_tokenizer(),
        "transformer": transformer,
    }
    return FluxPipeline(**components)


def fill_unseen_words(encoder: "CLIPTextModel") -> None:
    """Give every token that training never saw the embedding of the unknown word.

    The CLIP tokenizer spells words from outside the world in letters; their rows would stay at
    their random start and mislead.

    Args:
        encoder: The CLIP text encoder; changed in place.
    """
    rows = encoder.get_input_embeddings().weight
    assert isinstance(rows, torch.Tensor)
    with torch.no_grad():
        rows[VOCABULARY:] = rows[UNKNOWN]
