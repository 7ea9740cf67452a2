"""The CLIP score on a tiny random CLIP model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_lens.metrics.alignment import ClipScore
from tests.pipelines import FOLDER

TEXTS = ["a red cat", "two dogs in a snowy park", "a red cat"]


@pytest.fixture(scope="module")
def score() -> ClipScore:
    from transformers import (
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        CLIPProcessor,
        CLIPTokenizer,
    )

    tokenizer: Any = CLIPTokenizer.from_pretrained(FOLDER / "sd" / "pipeline" / "tokenizer")
    shared = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={
            **shared,
            "vocab_size": len(tokenizer),
            "num_hidden_layers": 2,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={**shared, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8},
        projection_dim=12,
    )
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    torch.manual_seed(0)
    return ClipScore(CLIPModel(config).eval(), CLIPProcessor(images, tokenizer), batch_size=2)


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
