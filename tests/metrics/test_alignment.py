"""The CLIP score on a tiny random CLIP model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lens.errors import ArgumentError
from diffusion_lens.metrics.alignment import ClipScore
from tests.metrics.tiny import clip_score

TEXTS = ["a red cat", "two dogs in a snowy park", "a red cat"]


@pytest.fixture(scope="module")
def score() -> ClipScore:
    return clip_score()


def pictures(count: int = 3) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)) for _ in range(count)]


def test_scores_are_the_models_own_logits_without_the_temperature(score: ClipScore) -> None:
    given = score.processor(text=TEXTS, images=pictures(), padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = score.model(**given).logits_per_image / score.model.logit_scale.exp()
    found = score(pictures(), TEXTS)
    torch.testing.assert_close(found, logits.diagonal(), atol=1e-5, rtol=1e-5)
    assert found.abs().max() <= 1


def test_one_text_serves_every_image_and_arrays_are_images(score: ClipScore) -> None:
    arrays = [np.array(picture) for picture in pictures()]
    found = score(arrays, TEXTS[0])
    assert torch.equal(found, score(pictures(), [TEXTS[0]] * 3))
    assert torch.equal(found, score(np.stack(arrays), TEXTS[0]))
    assert len(found.unique()) == 3


def test_texts_and_images_must_pair(score: ClipScore) -> None:
    with pytest.raises(ValueError, match=r"2 texts for 3 images; give one for each"):
        score(pictures(), TEXTS[:2])


def test_what_is_no_image_or_text_is_refused(score: ClipScore) -> None:
    for nothing in (score.embed_images, score.embed_texts):
        with pytest.raises(ArgumentError, match="is empty; give one or more"):
            nothing([])
    for wrong in (np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), "a.png"):
        with pytest.raises(ArgumentError, match=r"of shape .*; give PIL images, or uint8 arrays"):
            score.embed_images([wrong])
