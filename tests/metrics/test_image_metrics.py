"""DINOv2, BLIP captions, LPIPS and masks by text, on tiny random models of the real classes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lens.metrics.alignment import ClipScore
from diffusion_lens.metrics.captions import CaptionScore, least_object
from diffusion_lens.metrics.objects import TextMasks
from diffusion_lens.metrics.perceptual import PerceptualDistance
from diffusion_lens.metrics.structure import DinoSimilarity
from tests.metrics.test_alignment import pictures, score  # noqa: F401 (a fixture)

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]", "a", "red", "cat", ".", "two", "dogs", "and"]


def bert_tokenizer(folder: Path) -> Any:
    import transformers

    path = folder / "vocab.txt"
    path.write_text("\n".join(WORDS), encoding="utf-8")
    fast: Any = vars(transformers).get("BertTokenizerFast") or transformers.BertTokenizer
    return fast(vocab=str(path))


# -- DINOv2 -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dino() -> DinoSimilarity:
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    processor = BitImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    torch.manual_seed(0)
    return DinoSimilarity(Dinov2Model(config).eval(), processor, batch_size=2)


def test_an_image_is_like_itself_and_pairs_are_compared_in_order(dino: DinoSimilarity) -> None:
    one, two, three = pictures()
    torch.testing.assert_close(dino([one, two], [one, two]), torch.ones(2))
    found = dino([one, two, three], [two, three, three])
    vectors = dino.embed([one, two, three])
    torch.testing.assert_close(found[:2], (vectors[:2] * vectors[1:]).sum(-1))
    assert float(found[0]) < 0.9999
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))


def test_what_is_masked_does_not_count(dino: DinoSimilarity) -> None:
    one, _, _ = pictures()
    pixels = np.array(one)
    pixels[5:20, 5:20] = 0
    mask = np.zeros((40, 40), bool)
    mask[5:20, 5:20] = True
    edited = Image.fromarray(pixels)
    assert float(dino([one], [edited])) < 0.99999
    masked = dino([one], [edited], masks=[mask], other_masks=[mask])
    torch.testing.assert_close(masked, torch.ones(1))


def test_dino_refuses_what_does_not_pair(dino: DinoSimilarity) -> None:
    one, two, _ = pictures()
    with pytest.raises(ValueError, match="1 images and 2 others"):
        dino([one], [one, two])
    with pytest.raises(ValueError, match=r"a mask of shape \(3, 3\)"):
        dino([one], [two], masks=[np.zeros((3, 3), bool)])
    with pytest.raises(ValueError, match="2 masks for 1 images"):
        dino([one], [two], masks=[None, None])


def test_dino_loads_from_a_folder(dino: DinoSimilarity, tmp_path: Path) -> None:
    dino.model.save_pretrained(tmp_path)
    dino.processor.save_pretrained(tmp_path)
    loaded = DinoSimilarity.load(str(tmp_path))
    torch.testing.assert_close(loaded.embed(pictures()), dino.embed(pictures()))


# -- captions ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def caption_score(score: ClipScore, tmp_path_factory: Any) -> CaptionScore:  # noqa: F811
    from transformers import (
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    shared = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config = BlipConfig(
        text_config={
            **shared,
            "num_hidden_layers": 2,
            "vocab_size": len(WORDS),
            "encoder_hidden_size": 16,
            "bos_token_id": 4,
            "pad_token_id": 0,
            "sep_token_id": 3,
            "eos_token_id": 3,
        },
        vision_config={**shared, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    torch.manual_seed(0)
    images = BlipImageProcessor(size={"height": 32, "width": 32})
    tokenizer = bert_tokenizer(tmp_path_factory.mktemp("bert"))
    model = BlipForConditionalGeneration(config).eval()
    return CaptionScore(model, BlipProcessor(images, tokenizer), score, batch_size=2)


def test_a_caption_is_compared_with_the_prompt(caption_score: CaptionScore) -> None:
    said = caption_score.captions(pictures(), max_new_tokens=5)
    assert len(said) == 3
    assert said == caption_score.captions(pictures(), max_new_tokens=5)
    scores = caption_score(pictures(), caption_score.captions(pictures()))
    torch.testing.assert_close(scores, torch.ones(3))
    assert (caption_score(pictures(), ["two dogs and a cat"] * 3) < 0.9999).all()
    with pytest.raises(ValueError, match="1 prompts for 3 images"):
        caption_score(pictures(), ["a"])


def test_the_worse_half_of_a_prompt(score: ClipScore) -> None:  # noqa: F811
    prompts = ["a red cat and two dogs"] * 3
    halves = [score(pictures(), half) for half in ("a red cat", "two dogs")]
    assert torch.equal(least_object(score, pictures(), prompts), torch.minimum(*halves))
    with pytest.raises(ValueError, match="has 1 parts joined by 'and'"):
        least_object(score, pictures(1), ["a cat"])


# -- LPIPS ------------------------------------------------------------------------------------


def test_a_distance_gets_pairs_of_pixels_from_minus_one_to_one() -> None:
    seen: list[float] = []

    def squared(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        seen.extend([float(one.min()), float(one.max())])
        return (one - other).square().mean((1, 2, 3), keepdim=True)

    black, white = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), (255, 255, 255))
    distance = PerceptualDistance(squared, batch_size=2)
    assert distance([black, white, white], [white, white, black]).tolist() == [4, 0, 4]
    assert (min(seen), max(seen)) == (-1, 1)
    with pytest.raises(ValueError, match=r"sizes \[\(2, 2\), \(4, 4\)\]"):
        distance([black, Image.new("RGB", (2, 2))], [black, black])
    with pytest.raises(ValueError, match="1 images and 0 others"):
        distance([black], [])


@pytest.mark.skipif(bool(importlib.util.find_spec("lpips")), reason="lpips is installed")
def test_lpips_that_is_missing_says_how_to_get_it() -> None:
    with pytest.raises(ImportError, match=r"pip install 'diffusion-lens\[metrics\]'"):
        PerceptualDistance.load()


# -- masks by text ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def masks(tmp_path_factory: Any) -> TextMasks:
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
    processor = GroundingDinoProcessor(images, bert_tokenizer(tmp_path_factory.mktemp("bert")))
    return TextMasks(
        GroundingDinoForObjectDetection(detector).eval(),
        processor,
        Sam2Model(segmenter).eval(),
        threshold=0.0,
        text_threshold=0.0,
    )


def test_a_mask_is_the_union_of_the_boxes_outlines(masks: TextMasks) -> None:
    image = pictures(1)[0].resize((48, 40))
    boxes = masks.boxes(image, "A red cat")
    assert boxes.shape[1] == 4
    assert len(boxes)
    (found,) = masks([image], "A red cat")
    assert found.shape == (40, 48)
    assert found.dtype == bool
    each = [masks.outline(image, boxes[at : at + 1]) for at in range(len(boxes))]
    assert np.array_equal(found, np.any(each, axis=0))


def test_nothing_found_is_an_empty_mask(masks: TextMasks) -> None:
    careful = TextMasks(masks.detector, masks.processor, masks.segmenter, threshold=1.0)
    (found,) = careful(pictures(1), ["cat"])
    assert not found.any()
    with pytest.raises(ValueError, match="2 texts for 1 images"):
        careful(pictures(1), ["cat", "dogs"])
