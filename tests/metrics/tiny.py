"""Tiny random models of the real classes, for scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from diffusion_lens.metrics.alignment import ClipScore
from diffusion_lens.metrics.captions import CaptionScore
from diffusion_lens.metrics.objects import TextMasks
from diffusion_lens.metrics.structure import DinoSimilarity
from tests.pipelines import FOLDER

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]", "a", "red", "cat", ".", "two", "dogs", "and"]
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}


def bert_tokenizer(folder: Path) -> Any:
    """BERT's tokenizer of a few words."""
    import transformers

    path = folder / "vocab.txt"
    path.write_text("\n".join(WORDS), encoding="utf-8")
    fast: Any = vars(transformers).get("BertTokenizerFast") or transformers.BertTokenizer
    return fast(vocab=str(path))


def clip_score() -> ClipScore:
    """CLIP."""
    from transformers import (
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        CLIPProcessor,
        CLIPTokenizer,
    )

    tokenizer: Any = CLIPTokenizer.from_pretrained(FOLDER / "sd" / "pipeline" / "tokenizer")
    config = CLIPConfig(
        text_config={
            **SMALL,
            "vocab_size": len(tokenizer),
            "num_hidden_layers": 2,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={**SMALL, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8},
        projection_dim=12,
    )
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    torch.manual_seed(0)
    return ClipScore(CLIPModel(config).eval(), CLIPProcessor(images, tokenizer), batch_size=2)


def dino_similarity() -> DinoSimilarity:
    """DINOv2."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    processor = BitImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    torch.manual_seed(0)
    return DinoSimilarity(Dinov2Model(config).eval(), processor, batch_size=2)


def captioner(score: ClipScore, folder: Path) -> CaptionScore:
    """BLIP, with a tokenizer whose file lies in a folder."""
    from transformers import (
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    config = BlipConfig(
        text_config={
            **SMALL,
            "num_hidden_layers": 2,
            "vocab_size": len(WORDS),
            "encoder_hidden_size": 16,
            "bos_token_id": 4,
            "pad_token_id": 0,
            "sep_token_id": 3,
            "eos_token_id": 3,
        },
        vision_config={**SMALL, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    torch.manual_seed(0)
    images = BlipImageProcessor(size={"height": 32, "width": 32})
    tokenizer = bert_tokenizer(folder)
    model = BlipForConditionalGeneration(config).eval()
    return CaptionScore(model, BlipProcessor(images, tokenizer), score, batch_size=2)


def text_masks(folder: Path) -> TextMasks:
    """Grounding DINO and SAM 2, with a tokenizer whose file lies in a folder."""
    from transformers import (
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        Sam2Config,
        Sam2Model,
        SwinConfig,
    )

    torch.manual_seed(0)
    detector = GroundingDinoConfig(
        backbone_config=SwinConfig.from_dict(
            {
                "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1],
                "window_size": 2, "image_size": 64,
                "out_features": ["stage2", "stage3", "stage4"],
            }
        ),
        text_config={
            "model_type": "bert", "vocab_size": len(WORDS), "hidden_size": 16,
            "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
        },
        d_model=32, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
        encoder_attention_heads=2, decoder_attention_heads=2, num_queries=5, max_text_len=16,
        disable_custom_kernels=True,
    )  # fmt: skip
    hiera = {
        "model_type": "sam2_hiera_det_model", "hidden_size": 8, "image_size": [64, 64],
        "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 1, 1], "global_attention_blocks": [3],
        "window_size_per_stage": [8, 8, 4, 4],
    }  # fmt: skip
    segmenter = Sam2Config(
        vision_config={
            "model_type": "sam2_vision_model", "backbone_config": hiera, "fpn_hidden_size": 16,
            "backbone_channel_list": [64, 32, 16, 8],
            "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": 64},
        mask_decoder_config={
            "hidden_size": 16, "mlp_dim": 16, "num_attention_heads": 2, "iou_head_hidden_dim": 16,
        },
    )  # fmt: skip
    images = GroundingDinoImageProcessor(size={"shortest_edge": 128, "longest_edge": 128})
    processor = GroundingDinoProcessor(images, bert_tokenizer(folder))
    return TextMasks(
        GroundingDinoForObjectDetection(detector).eval(),
        processor,
        Sam2Model(segmenter).eval(),
        threshold=0.0,
        text_threshold=0.0,
    )
