"""Losses, gradients and latents are those of the authors' code (data in tests/golden)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lens import Run
from diffusion_lens.analyses.attend_and_excite import attend_and_excite
from diffusion_lens.analyses.attend_and_excite.attend_and_excite import (
    NeglectLoss,
    _factors,
    _sites,
)
from diffusion_lens.analyses.attend_and_excite.maps import Columns
from diffusion_lens.interventions.pattern_gradient import PatternGradient
from tests.pipelines import golden
from tests.reference.test_concept_steering import published
from tests.reference.test_head_relevance import model_of

CASES = ["aae", "aae_refine", "aae_hrv", "aae_hrv_refine"]
FINAL = {"aae": 0.005, "aae_refine": 0.05, "aae_hrv": 0.002, "aae_hrv_refine": 0.002}
"""Absolute tolerances of the final latents, of the README beside the data."""


def asked(case: str) -> tuple[dict[str, Any], dict[str, Any]]:
    given = golden("sd").cases[case]
    words = [token.removesuffix("</w>") for token in given["tokens"]]
    options = {
        "words": words,
        "thresholds": {int(step): at for step, at in given["thresholds"].items()},
        "max_iter_to_alter": given["max_iter_to_alter"],
        "step_size": given["scale_factor"],
        "scale_range": tuple(given["scale_range"]),
        "smooth": given["sigma"] if given["smooth"] else None,
        "resolution": given["attention_resolution"],
    }
    if given["hrv_weighted"]:
        options |= {"relevance": published("sd", model_of("sd"))}
        options |= {"concepts": given["token_concepts"]}
    settings = {
        "num_inference_steps": given["num_inference_steps"],
        "guidance_scale": given["guidance_scale"],
        "output_type": "latent",
    }
    return options, settings


def agree(found: Tensor, name: str, *, atol: float, rtol: float = 0.001) -> None:
    torch.testing.assert_close(found, golden("sd").expected[name], atol=atol, rtol=rtol)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_run_agrees(case: str) -> None:
    data = golden("sd")
    options, settings = asked(case)
    result = attend_and_excite(
        model_of("sd"),
        data.cases[case]["prompt"],
        **options,
        **settings,
        latents=data.inputs["latents"],
    )
    agree(result.losses, f"{case}.losses", atol=0.001)
    agree(result.latents, f"{case}.latents", atol=FINAL[case])
    if "updates_at_step_0" in data.cases[case]:
        assert result.steps.count(0) == data.cases[case]["updates_at_step_0"]


@pytest.mark.parametrize("case", ["aae", "aae_hrv"])
@pytest.mark.parametrize("checkpoint", [True, False])
def test_the_first_loss_and_its_gradient_agree(case: str, checkpoint: bool) -> None:
    data, model = golden("sd"), model_of("sd")
    options, settings = asked(case)
    tokens = tuple(data.cases[case]["token_indices"])
    subjects = dict(zip(options["words"], [(token,) for token in tokens], strict=True))
    factors = _factors(model, options.get("relevance"), options.get("concepts"), subjects)
    loss = NeglectLoss(tokens, factors, options["resolution"], Columns(), options["smooth"])
    maxima: list[Tensor] = []

    def seen_and_kept(seen: Any) -> Tensor:
        maxima.append(loss.maxima(seen))
        return loss(seen)

    sites = _sites(model, options["resolution"], options.get("relevance"))
    run = Run(data.cases[case]["prompt"], **settings)
    evaluate = PatternGradient(model, run, sites, seen_and_kept, checkpoint=checkpoint)
    found = evaluate(data.inputs["latents"], 0)
    assert found.steps == settings["num_inference_steps"] + 1
    agree(torch.tensor(found.loss), f"{case}.loss_0", atol=1e-5, rtol=1e-4)
    agree(maxima[0].detach(), f"{case}.max_attention_0", atol=1e-5, rtol=1e-4)
    agree(found.gradient, f"{case}.grad_0", atol=1e-5)
    moved = data.inputs["latents"] - options["step_size"] * found.gradient
    agree(moved, f"{case}.updated_latents_0", atol=1e-4 if case == "aae_hrv" else 2e-4)
