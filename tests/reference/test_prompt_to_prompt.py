"""Edits give the latents, mappers and schedules of the authors' code (data in tests/golden)."""

from __future__ import annotations

import pytest
import torch

from diffusion_lens import Run
from diffusion_lens.analyses import prompt_to_prompt
from diffusion_lens.analyses.prompt_to_prompt.schedule import cross_steps, self_steps
from diffusion_lens.analyses.prompt_to_prompt.words import align
from tests.pipelines import golden
from tests.reference.test_concept_steering import published
from tests.reference.test_head_relevance import model_of

CASES = ["p2p", "p2p_multi", "p2p_hrv"]


@pytest.mark.parametrize("case", CASES)
def test_latents_agree(case: str) -> None:
    model, data = model_of("sd"), golden("sd")
    given = data.cases[case]
    source, *targets = given["prompts"]
    hrv = {"relevance": published("sd", model), "concept": given.get("concept")}
    result = prompt_to_prompt(
        model,
        source,
        targets,
        cross_replace=given["cross_replace_steps"],
        self_replace=given["self_replace_steps"],
        latents=data.inputs["latents"],
        num_inference_steps=given["num_inference_steps"],
        guidance_scale=given["guidance_scale"],
        output_type="latent",
        **(hrv if "concept" in given else {}),
    )
    expected = data.expected[f"{case}.latents"]
    torch.testing.assert_close(result.latents, expected, atol=0.001, rtol=0.001)


@pytest.mark.parametrize("case", CASES)
def test_mappers_and_schedules_agree(case: str) -> None:
    model, data = model_of("sd"), golden("sd")
    given = data.cases[case]
    source, *targets = given["prompts"]
    found = [align(model, Run(source), target, edit="replace", length=77) for target in targets]
    mappers = torch.stack([one.mapper for one in found])
    assert torch.equal(mappers, data.expected[f"{case}.mapper"])
    steps = given["num_inference_steps"]
    alpha = cross_steps(
        given["cross_replace_steps"], {}, [{} for _ in targets], steps=steps, length=77
    )
    assert torch.equal(alpha, data.expected[f"{case}.cross_alpha"])
    start, stop = given["self_replace_calls"]
    assert self_steps(given["self_replace_steps"], steps=steps) == range(start, stop)
    if "target_token_indices" in given:
        assert list(found[0].edited) == given["target_token_indices"]
