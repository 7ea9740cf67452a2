"""ConceptAttention gives the maps of the published implementations (data in tests/golden)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lens import HookedDiffusion
from diffusion_lens.analyses import ConceptMaps, concept_attention
from diffusion_lens.analyses.concept_attention import PRESETS
from tests.pipelines import golden, shared_pipe

RUN = ("prompt", "height", "width", "num_inference_steps", "guidance_scale", "max_sequence_length")
SUBSET = {"blocks": [1, 2], "steps": [2, 3]}


def maps(**more: Any) -> ConceptMaps:
    given = golden("flux")
    case = given.cases["ca"]
    settings: dict[str, Any] = {name: case[name] for name in RUN}
    settings["latents"] = given.inputs["latents"]
    model = HookedDiffusion(shared_pipe("flux"))
    prompt = settings.pop("prompt")
    return concept_attention(
        model, prompt, concepts=case["concepts"], output_type="latent", **settings, **more
    )


def agree(found: Tensor, name: str) -> None:
    """Within the tolerances of the README beside the golden folder."""
    torch.testing.assert_close(found, golden("flux").expected[name], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("preset", ["paper", "flux-release"])
def test_maps_before_the_projections_agree(preset: str) -> None:
    padded = replace(PRESETS[preset], max_sequence_length=64)
    agree(maps(preset=padded).maps, "ca_pre.heatmap")
    agree(maps(preset=padded, **SUBSET).maps, "ca_pre.heatmap_subset")


def test_maps_of_the_diffusers_port_agree() -> None:
    agree(maps(preset="flux-diffusers").maps, "ca.heatmap_patch_softmax")
    agree(maps(preset="flux-diffusers", **SUBSET).maps, "ca.heatmap_patch_softmax_subset")


def test_maps_after_the_projections_agree() -> None:
    agree(maps(preset="flux-diffusers", softmax_over="concepts").maps, "ca.heatmap")
    found = maps(preset="flux-diffusers", softmax_over="nothing")
    agree(found.maps[0].softmax(0), "ca.heatmap_mean_then_softmax")


def test_maps_of_queries_agree() -> None:
    padded = replace(PRESETS["flux-release"], max_sequence_length=64)
    agree(maps(preset=padded, space="query-query").maps, "ca_pre.cross_heatmap")
