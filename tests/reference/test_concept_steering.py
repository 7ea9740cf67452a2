"""Weakened and rescaled attention give the images of the authors' code (data in tests/golden)."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lens import HookedDiffusion
from diffusion_lens.analyses.concept_steering import (
    rescale_word,
    rescaling_vector,
    steer_word,
)
from diffusion_lens.analyses.head_relevance import text_heads
from diffusion_lens.analyses.head_relevance.result import HeadRelevance
from diffusion_lens.analyses.ordered_weakening import weaken_words
from tests.pipelines import FOLDER, golden, latents_of
from tests.reference.test_head_relevance import model_of

TOLERANCE = {("sdxl", "adjust"): 0.01, ("sdxl", "adjust_clamped"): 0.002}
"""Absolute tolerances of the README beside each golden folder; 0.001 elsewhere."""


def published(family: str, model: HookedDiffusion) -> HeadRelevance:
    given = golden(family)
    names = given.cases["hrv"]["concept_names"]
    return HeadRelevance(
        given.inputs["hrv_vectors"], tuple(names), {}, text_heads(model), prompts=2
    )


def settings(family: str, case: str) -> dict[str, Any]:
    given = golden(family)
    names = ("num_inference_steps", "guidance_scale")
    return {name: given.cases[case][name] for name in names} | {
        "latents": given.inputs["latents"],
        "output_type": "latent",
    }


def agree(found: Tensor, family: str, case: str) -> None:
    atol = TOLERANCE.get((family, case), 0.001)
    expected = golden(family).expected[f"{case}.latents"]
    torch.testing.assert_close(found, expected, atol=atol, rtol=0.001)


@pytest.mark.parametrize("case", ["weaken_top", "weaken_bottom"])
def test_weakened_heads_agree(case: str) -> None:
    model, given = model_of("sd"), golden("sd").cases[case]
    listed = json.loads((FOLDER / "sd" / "inputs.json").read_text(encoding="utf-8"))["heads"]
    heads = [text_heads(model)[index][:2] for index in given["head_indices"]]
    assert len(listed) == len(text_heads(model))
    hooks = weaken_words(model, given["prompt"], heads, factor=given["factor"])
    columns = golden("sd").expected[f"{case}.token_factor"] == given["factor"]
    union = sorted(
        {at for word in given["prompt"].split() for at in model.words(given["prompt"], word)}
    )
    assert union == columns.nonzero().flatten().tolist()
    out = model.run_with_hooks(given["prompt"], fwd_hooks=hooks, **settings("sd", case))
    agree(latents_of(out), "sd", case)


def test_a_rescaled_word_agrees() -> None:
    model, case = model_of("sd"), golden("sd").cases["rescale"]
    relevance = published("sd", model)
    factors = relevance.factors(golden("sd").inputs["rescale.head_factor"])
    hooks = rescale_word(model, case["token_word"], factors)
    out = model.run_with_hooks(case["prompt"], fwd_hooks=hooks, **settings("sd", "rescale"))
    agree(latents_of(out), "sd", "rescale")


@pytest.mark.slow
@pytest.mark.parametrize("case", ["adjust", "adjust_clamped"])
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_an_adjusted_word_agrees(family: str, case: str) -> None:
    model, given = model_of(family), golden(family).cases[case]
    relevance = published(family, model)
    steered = {"desired": given["desired"], "undesired": given["undesired"]}
    vector = rescaling_vector(
        *(relevance.vector(name) for name in steered.values()), clamp=given["clamp"]
    )
    torch.testing.assert_close(vector, golden(family).expected[f"{case}.head_factor"])
    out = steer_word(
        model,
        given["prompt"],
        given["token_word"],
        relevance,
        **steered,
        clamp=given["clamp"],
        **settings(family, case),
    )
    agree(latents_of(out), family, case)
