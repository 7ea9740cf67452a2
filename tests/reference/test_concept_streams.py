"""Concept streams give what the published implementations gave (data in tests/golden)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_lens import HookedDiffusion
from tests.pipelines import golden, latents_of, shared_pipe

RUN = ("prompt", "height", "width", "num_inference_steps", "guidance_scale", "max_sequence_length")


def settings(family: str, case: str) -> dict[str, Any]:
    given = golden(family)
    kept = {name: given.cases[case][name] for name in RUN}
    return {**kept, "latents": given.inputs["latents"], "output_type": "latent"}


def agree(found: Tensor, expected: Tensor, *, atol: float = 1e-4) -> None:
    """Within the tolerances of the README beside each golden folder."""
    torch.testing.assert_close(found, expected, atol=atol, rtol=1e-3)


def stacked(cache: Any, name: str) -> Tensor:
    """A point of every double block, axes step layer batch pos d."""
    found = [key for key in cache.keys() if key.endswith(name)]  # noqa: SIM118
    return torch.stack([cache[key].flatten(3) for key in found], 1)


def streamed(family: str, case: str, *names: str, **streams: Any) -> tuple[Any, Any]:
    model = HookedDiffusion(shared_pipe(family))
    concepts = streams.pop("concepts", golden(family).inputs.get("ca.concept_embeds"))
    blocks = golden(family).cases[case]["layers"]
    sites = [f"blocks.{block}.{name}" for block in blocks for name in names]
    with model.concept_streams(concepts, **streams):
        return model.run_with_cache(
            names_filter=sites, branch="all", show_progress=False, **settings(family, case)
        )


class TestFlux:
    def test_vectors_after_the_projections_agree(self) -> None:
        given = golden("flux")
        pooled = given.inputs["ca.concept_pooled"]
        out, cache = streamed(
            "flux", "ca", "concept.hook_attn_out", "img.hook_attn_out", pooled=pooled
        )
        concepts = stacked(cache, "concept.hook_attn_out")
        image = stacked(cache, "img.hook_attn_out")
        expected = given.expected
        agree(concepts, expected["ca.concept_output_vectors"])
        agree(image, expected["ca.image_output_vectors"])
        scores = concepts @ image.mT
        agree(scores, expected["ca.concept_attention_maps"], atol=1e-3)
        heatmap = scores.softmax(3).mean((0, 1)).unflatten(-1, (8, 8))
        agree(heatmap, expected["ca.heatmap"])
        agree(latents_of(out), expected["plain.latents"])

    @pytest.mark.parametrize("words", [False, True])
    def test_vectors_before_the_projections_agree(self, words: bool) -> None:
        given = golden("flux")
        expected = given.expected
        case = given.cases["ca"]
        encoded = (
            {
                "concepts": case["concepts"],
                "tokens": "first",
                "max_sequence_length": case["concept_max_sequence_length"],
            }
            if words
            else {}
        )
        names = ("attn.concept.hook_z", "attn.img.hook_z")
        _, cache = streamed("flux", "ca_pre", *names, **encoded)
        concepts, image = (stacked(cache, name) for name in names)
        agree(concepts, expected["ca_pre.concept_output_vectors"])
        agree(image, expected["ca_pre.image_output_vectors"])
        heatmap = (concepts @ image.mT).softmax(3).mean((0, 1)).unflatten(-1, (8, 8))
        agree(heatmap, expected["ca_pre.heatmap"])

    def test_queries_before_rope_give_the_published_cross_heatmap(self) -> None:
        names = ("attn.concept.hook_q_pre_rope", "attn.img.hook_q_pre_rope")
        _, cache = streamed("flux", "ca_pre", *names)
        concepts, image = (stacked(cache, name) for name in names)
        heatmap = (concepts @ image.mT).softmax(3).mean((0, 1)).unflatten(-1, (8, 8))
        agree(heatmap, golden("flux").expected["ca_pre.cross_heatmap"])


@pytest.mark.parametrize("family", ["sd3", "sd35"])
class TestStableDiffusion3:
    def test_concept_vectors_agree(self, family: str) -> None:
        _, cache = streamed(family, "ca", "attn.concept.hook_z")
        expected = golden(family).expected["ca.concept_output_vectors"]
        agree(stacked(cache, "hook_z"), expected)

    def test_each_guidance_branch_has_its_own_copy(self, family: str) -> None:
        _, cache = streamed(family, "ca_cfg", "attn.concept.hook_z")
        found = torch.cat([stacked(cache.branch(name), "hook_z") for name in ("uncond", "cond")], 2)
        expected = golden(family).expected["ca_cfg.concept_output_vectors"]
        agree(found, expected, atol=5e-4)

    def test_the_published_image_vectors_follow_from_the_hook_points(self, family: str) -> None:
        points = ["img.hook_q", "img.hook_k", "img.hook_v"]
        points += ["concept.hook_k", "concept.hook_v", "concept.hook_z"]
        _, cache = streamed(family, "ca", *[f"attn.{point}" for point in points])

        def each(point: str) -> Tensor:
            names = [name for name in cache.keys() if name.endswith(f".attn.{point}")]  # noqa: SIM118
            return torch.stack([cache[name] for name in names], 1).transpose(3, 4)

        key, value = (
            torch.cat([each(f"img.hook_{which}"), each(f"concept.hook_{which}")], 4)
            for which in "kv"
        )
        attended = F.scaled_dot_product_attention(each("img.hook_q"), key, value)
        image = attended.transpose(3, 4).flatten(4)
        concepts = each("concept.hook_z").transpose(3, 4).flatten(4)[..., 1:, :]
        expected = golden(family).expected
        agree(image, expected["ca.image_output_vectors"])
        maps = concepts @ image.mT
        agree(maps, expected["ca.concept_attention_maps"], atol=1e-3)
        heatmap = maps.softmax(3).mean((0, 1)).unflatten(-1, (8, 8))
        agree(heatmap, expected["ca.heatmap_per_step_softmax"])
        means = concepts.mean(0)
        means = means / (means.norm(dim=-1, keepdim=True) + 1e-8)
        heatmap = (means @ image.mean(0).mT).softmax(2).mean((0, 1)).unflatten(-1, (8, 8))
        agree(heatmap, expected["ca.heatmap"])
