"""Analyses on a modular pipeline give what they give on the classic one of its components."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diffusion_lens import HookedDiffusion, Site
from diffusion_lens.analyses import (
    ablation_sweep,
    attend_and_excite,
    attention_maps,
    concept_attention,
    invert,
)
from diffusion_lens.analyses.head_relevance import head_relevance
from diffusion_lens.errors import RunError
from tests.modular.pipelines import put_together

PROMPT = "a red circle above a blue square"
SIZE: dict[str, Any] = {"height": 32, "width": 32, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def both() -> tuple[HookedDiffusion, HookedDiffusion]:
    toy = HookedDiffusion.toy("shapes-mmdit")
    toy.pipe.set_progress_bar_config(disable=True)
    return toy, HookedDiffusion(put_together(toy.pipe, "FluxAutoBlocks"))


def test_maps_and_relevances_are_the_same(both: tuple[HookedDiffusion, HookedDiffusion]) -> None:
    maps = [attention_maps(model, PROMPT, words=["circle"], **SIZE).maps for model in both]
    assert torch.equal(*maps)
    concepts = [
        concept_attention(model, PROMPT, concepts=["circle", "square"], **SIZE) for model in both
    ]
    assert torch.equal(*(one.maps for one in concepts))
    words = {"Color": ["red", "blue"], "Shape": ["circle", "square"]}
    votes = [head_relevance(model, [PROMPT], concepts=words, **SIZE).vectors for model in both]
    assert torch.equal(*votes)


def test_sweeps_are_the_same(both: tuple[HookedDiffusion, HookedDiffusion]) -> None:
    sites = [Site("blocks.1.img.hook_attn_out", steps=[0])]
    found = [ablation_sweep(model, PROMPT, sites=sites, seeds=1, **SIZE) for model in both]
    assert torch.equal(*(torch.as_tensor(one.effects) for one in found))


def test_inversion_is_the_same(both: tuple[HookedDiffusion, HookedDiffusion]) -> None:
    image = both[0](PROMPT, seed=0, **SIZE).image
    found = [invert(model, image, PROMPT, num_inference_steps=2) for model in both]
    assert torch.equal(*(torch.as_tensor(one.latents) for one in found))


def test_what_needs_gradients_is_refused(both: tuple[HookedDiffusion, HookedDiffusion]) -> None:
    with pytest.raises(RunError, match=r"compute under torch\.no_grad, without gradients"):
        attend_and_excite(both[1], PROMPT, words=["circle"], **SIZE)
