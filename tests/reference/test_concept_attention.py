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

RUN = (
    "prompt",
    "negative_prompt",
    "height",
    "width",
    "num_frames",
    "num_inference_steps",
    "guidance_scale",
    "max_sequence_length",
)
SUBSET: dict[str, Any] = {"blocks": [1, 2], "steps": [2, 3]}


def maps(family: str = "flux", case: str = "ca", **more: Any) -> ConceptMaps:
    given = golden(family)
    settings: dict[str, Any] = {
        name: value for name, value in given.cases[case].items() if name in RUN
    }
    settings["latents"] = given.inputs["latents"]
    model = HookedDiffusion(shared_pipe(family))
    prompt, concepts = settings.pop("prompt"), given.cases[case]["concepts"]
    return concept_attention(
        model, prompt, concepts=concepts, output_type="latent", **settings, **more
    )


def agree(found: Tensor, name: str, *, family: str = "flux", atol: float = 1e-4) -> None:
    """Within the tolerances of the README beside the golden folder."""
    torch.testing.assert_close(found, golden(family).expected[name], atol=atol, rtol=1e-3)


@pytest.mark.slow
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


@pytest.mark.parametrize("family", ["sd3", "sd35"])
class TestStableDiffusion3:
    def test_maps_of_averaged_vectors_agree(self, family: str) -> None:
        agree(maps(family, preset="sd3").maps[0], "ca.heatmap", family=family)
        found = maps(family, preset="sd3", blocks=[0, 1])
        agree(found.maps[0], "ca.heatmap_subset", family=family)

    def test_maps_of_every_step_agree(self, family: str) -> None:
        preset = replace(PRESETS["sd3"], vectors_first=False)
        agree(maps(family, preset=preset).maps, "ca.heatmap_per_step_softmax", family=family)

    @pytest.mark.slow
    def test_maps_of_both_guidance_branches_agree(self, family: str) -> None:
        found = [
            maps(family, "ca_cfg", preset="sd3", branch=branch).maps
            for branch in ("uncond", "cond")
        ]
        agree(torch.cat(found), "ca_cfg.heatmap_branches", family=family, atol=2e-4)


def test_maps_of_a_video_agree() -> None:
    found = maps("cogvideox", preset="cogvideox")
    assert found.axes == ("batch", "concept", "frame", "height", "width")
    agree(found.maps[0], "ca.heatmap", family="cogvideox")
