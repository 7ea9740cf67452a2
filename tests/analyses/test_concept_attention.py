"""ConceptAttention maps: their axes and numbers, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion_lens import HookedDiffusion
from diffusion_lens.analyses import ConceptMaps, concept_attention, concept_scores
from diffusion_lens.analyses.concept_attention import Preset
from diffusion_lens.errors import ConceptError
from tests.pipelines import shared_pipe, short, traces

CONCEPTS = ["cat", "glass table", "sky"]


def maps(family: str, **more: Any) -> ConceptMaps:
    settings = short(family)
    prompt = settings.pop("prompt")
    model = HookedDiffusion(shared_pipe(family))
    return concept_attention(model, prompt, concepts=CONCEPTS, **settings, **more)


def test_scores_of_a_case_worked_out_by_hand() -> None:
    concepts = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    image = torch.tensor([[[3.0, 0.0], [0.0, 1.0], [1.0, 0.5]]])
    products = concept_scores(concepts, image, softmax_over="nothing")
    assert products.tolist() == [[[3.0, 0.0, 1.0], [0.0, 2.0, 1.0]]]
    over_concepts = concept_scores(concepts, image)
    torch.testing.assert_close(over_concepts[0, :, 2], torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(over_concepts.sum(1), torch.ones(1, 3))
    over_patches = concept_scores(concepts, image, softmax_over="patches")
    torch.testing.assert_close(over_patches.sum(2), torch.ones(1, 2))


@pytest.mark.parametrize("family", ["sd3", "sd35", "flux"])
class TestMaps:
    def test_weights_of_a_patch_sum_to_one(self, family: str) -> None:
        found = maps(family)
        assert found.axes == ("batch", "concept", "height", "width")
        assert found.maps.shape == (1, 3, 8, 8)
        torch.testing.assert_close(found.maps.sum(1), torch.ones(1, 8, 8))
        assert torch.equal(found.of("sky"), found.maps[:, 2])
        assert torch.equal(found.segment(), found.maps.argmax(1))

    def test_kept_steps_and_blocks_average_to_the_map(self, family: str) -> None:
        apart = maps(family, keep=["step", "block"], preset=Preset(last_blocks=2))
        assert apart.axes == ("batch", "step", "block", "concept", "height", "width")
        assert apart.maps.shape == (1, 2, 2, 3, 8, 8)
        assert (apart.steps, len(apart.blocks)) == ((0, 1), 2)
        whole = maps(family, preset=Preset(last_blocks=2))
        torch.testing.assert_close(apart.maps.mean((1, 2)), whole.maps)
        assert maps(family, keep=["block"], steps=1).maps.ndim == 5

    def test_a_given_image_is_mapped_at_a_noise_level(self, family: str) -> None:
        model = HookedDiffusion(shared_pipe(family))
        settings = short(family)
        size = {name: settings[name] for name in ("height", "width")}
        image = np.random.default_rng(0).random((size["height"], size["width"], 3))
        guidance = {"guidance_scale": settings["guidance_scale"]}
        given = {"concepts": CONCEPTS, "image": image.astype(np.float32), **size, **guidance}
        one = concept_attention(model, "a cat", noise_level=0.7, **given)
        other = concept_attention(model, "a cat", noise_level=0.7, seed=1, **given)
        both = concept_attention(model, "a cat", noise_level=0.7, num_samples=2, **given)
        torch.testing.assert_close(both.maps, (one.maps + other.maps) / 2)

    def test_nothing_is_left_on_the_model(self, family: str) -> None:
        pipe = shared_pipe(family)
        before = traces(pipe)
        maps(family)
        assert traces(pipe) == before


def test_maps_survive_saving(tmp_path: Path) -> None:
    found = maps("flux", keep=["block"])
    again = ConceptMaps.load(found.save(tmp_path / "maps"))
    assert torch.equal(again.maps, found.maps)
    kept = ("axes", "concepts", "steps", "blocks", "citation")
    assert all(getattr(again, name) == getattr(found, name) for name in kept)


@pytest.mark.parametrize(
    ("message", "more"),
    [
        ("preset='papers' is none of .* Closest: 'paper'", {"preset": "papers"}),
        ("space='y' is none of", {"space": "y"}),
        ("softmax_over='concept' is none of", {"softmax_over": "concept"}),
        ("keep='steps' is none of .* Closest: 'step'", {"keep": ["steps"]}),
        ("belong to a given image", {"noise_level": 0.5}),
        ("block 7 has none", {"blocks": [7]}),
    ],
)
def test_bad_input_is_refused(message: str, more: dict[str, Any]) -> None:
    with pytest.raises(ConceptError, match=message):
        maps("flux", **more)


def test_a_map_that_does_not_exist() -> None:
    with pytest.raises(ConceptError, match=r"no map of 'skye'.* Closest: 'sky'"):
        maps("flux").of("skye")
