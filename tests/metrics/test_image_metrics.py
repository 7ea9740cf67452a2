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
from tests.metrics.tiny import captioner, dino_similarity, text_masks

# -- DINOv2 -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dino() -> DinoSimilarity:
    return dino_similarity()


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
    with pytest.raises(ValueError, match="1 image and 2 others"):
        dino([one], [one, two])
    with pytest.raises(ValueError, match=r"a mask of shape \(3, 3\)"):
        dino([one], [two], masks=[np.zeros((3, 3), bool)])
    with pytest.raises(ValueError, match="2 masks for 1 image"):
        dino([one], [two], masks=[None, None])


def test_dino_loads_from_a_folder(dino: DinoSimilarity, tmp_path: Path) -> None:
    dino.model.save_pretrained(tmp_path)
    dino.processor.save_pretrained(tmp_path)
    loaded = DinoSimilarity.load(str(tmp_path))
    torch.testing.assert_close(loaded.embed(pictures()), dino.embed(pictures()))


# -- captions ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def caption_score(score: ClipScore, tmp_path_factory: Any) -> CaptionScore:  # noqa: F811
    return captioner(score, tmp_path_factory.mktemp("bert"))


def test_a_caption_is_compared_with_the_prompt(caption_score: CaptionScore) -> None:
    said = caption_score.captions(pictures(), max_new_tokens=5)
    assert len(said) == 3
    assert said == caption_score.captions(pictures(), max_new_tokens=5)
    scores = caption_score(pictures(), caption_score.captions(pictures()))
    torch.testing.assert_close(scores, torch.ones(3))
    assert (caption_score(pictures(), ["two dogs and a cat"] * 3) < 0.9999).all()
    with pytest.raises(ValueError, match="1 prompt for 3 images"):
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
    with pytest.raises(ValueError, match="1 image and 0 others"):
        distance([black], [])


@pytest.mark.skipif(bool(importlib.util.find_spec("lpips")), reason="lpips is installed")
def test_lpips_that_is_missing_says_how_to_get_it() -> None:
    with pytest.raises(ImportError, match=r"pip install 'diffusion-lens\[metrics\]'"):
        PerceptualDistance.load()


# -- masks by text ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def masks(tmp_path_factory: Any) -> TextMasks:
    return text_masks(tmp_path_factory.mktemp("bert"))


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
    with pytest.raises(ValueError, match="2 texts for 1 image"):
        careful(pictures(1), ["cat", "dogs"])
