"""Concept streams give what the releases for SD3 and CogVideoX gave (data in tests/golden)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lens import HookedDiffusion
from tests.pipelines import golden, latents_of, shared_pipe

IMAGE = "attn.img_with_concepts.hook_z"


def settings(family: str, case: str) -> dict[str, Any]:
    given = golden(family).cases[case]
    kept = {name: value for name, value in given.items() if name in SETTINGS}
    return {**kept, "latents": golden(family).inputs["latents"], "output_type": "latent"}


SETTINGS = (
    "prompt",
    "negative_prompt",
    "height",
    "width",
    "num_frames",
    "num_inference_steps",
    "guidance_scale",
    "max_sequence_length",
)


def streamed(family: str, case: str, concepts: Any, *names: str, **streams: Any) -> Any:
    """Streams and cache of a run in which points of every block were kept."""
    model = HookedDiffusion(shared_pipe(family))
    with model.concept_streams(concepts, **streams) as opened:
        out, cache = model.run_with_cache(
            names_filter=[f"blocks.*.{name}" for name in names],
            branch="all",
            show_progress=False,
            **settings(family, case),
        )
    return opened, out, cache


def stacked(cache: Any, name: str, *, branch: str = "cond") -> Tensor:
    """A point of every block with heads joined, axes step block batch pos d."""
    found = cache.branch(branch)
    return torch.stack([found[key].flatten(3) for key in found.keys() if key.endswith(name)], 1)  # noqa: SIM118


def agree(found: Tensor, expected: Tensor, *, atol: float = 1e-4) -> None:
    """Within the tolerances of the README beside each golden folder."""
    torch.testing.assert_close(found, expected, atol=atol, rtol=1e-3)


def normalised(vectors: Tensor) -> Tensor:
    return vectors / (vectors.norm(dim=-1, keepdim=True) + 1e-8)


@pytest.mark.parametrize("family", ["sd3", "sd35"])
class TestStableDiffusion3:
    @pytest.mark.slow
    @pytest.mark.parametrize("words", [False, True], ids=["embeddings", "words"])
    def test_vectors_and_maps_agree(self, family: str, words: bool) -> None:
        given = golden(family)
        expected, concepts = given.expected, given.inputs["ca.concept_embeds"]
        more: dict[str, Any] = {"image_queries": True}
        if words:
            concepts, more["tokens"] = given.cases["ca"]["concepts"], "joint"
        opened, _, cache = streamed(family, "ca", concepts, "attn.concept.hook_z", IMAGE, **more)
        if words:
            assert list(opened.rows.values()) == [slice(1, 2), slice(2, 3), slice(3, 4)]
            torch.testing.assert_close(
                opened.given.embeddings, given.inputs["ca.concept_embeds"], atol=1e-5, rtol=1e-5
            )
        vectors, image = stacked(cache, "concept.hook_z"), stacked(cache, IMAGE)
        agree(vectors, expected["ca.concept_output_vectors"])
        agree(image, expected["ca.image_output_vectors"])
        scores = vectors[..., 1:, :] @ image.mT
        agree(scores, expected["ca.concept_attention_maps"], atol=1e-3)
        maps = scores.softmax(3).mean((0, 1)).unflatten(-1, (8, 8))
        agree(maps, expected["ca.heatmap_per_step_softmax"])
        means = normalised(vectors[..., 1:, :].mean(0)) @ image.mean(0).mT
        maps = means.softmax(-2)[:, 0].unflatten(-1, (8, 8))
        agree(maps.mean(0), expected["ca.heatmap"])
        agree(maps[[0, 1]].mean(0), expected["ca.heatmap_subset"])

    @pytest.mark.slow
    def test_maps_of_both_guidance_branches_agree(self, family: str) -> None:
        given = golden(family)
        _, _, cache = streamed(
            family,
            "ca_cfg",
            given.inputs["ca.concept_embeds"],
            "attn.concept.hook_z",
            IMAGE,
            image_queries=True,
        )
        maps = []
        for branch in ("uncond", "cond"):
            vectors = stacked(cache, "concept.hook_z", branch=branch)[..., 1:, :].mean(0)
            image = stacked(cache, IMAGE, branch=branch).mean(0)
            maps.append((normalised(vectors) @ image.mT).softmax(-2).mean((0, 1)))
        found = torch.stack(maps).unflatten(-1, (8, 8))
        agree(found, given.expected["ca_cfg.heatmap_branches"], atol=2e-4)


@pytest.mark.parametrize("words", [False, True], ids=["embeddings", "words"])
def test_vectors_and_maps_of_cogvideox_agree(words: bool) -> None:
    given = golden("cogvideox")
    expected, case = given.expected, given.cases["ca"]
    concepts = given.inputs["ca.concept_embeds"]
    more: dict[str, Any] = {"slots": case["concept_slots"]}
    if words:
        concepts = case["concepts"]
        more["max_sequence_length"] = case["concept_max_sequence_length"]
    points = ["attn.concept.hook_z", "attn.img.hook_z", "attn.concept.hook_k", "attn.img.hook_q"]
    opened, out, cache = streamed("cogvideox", "ca", concepts, *points, tokens="first", **more)
    assert [rows.start for rows in opened.rows.values()] == [0, 1, 2]
    vectors, image, key, query = (stacked(cache, point)[:, :, 0] for point in points)
    assert vectors.shape[2] == 226
    agree(vectors[:, :, :3], expected["ca.concept_output_vectors"])
    agree(image, expected["ca.image_output_vectors"])
    scores = vectors @ image.mT
    agree(scores[:, :, :3], expected["ca.concept_attention_maps"], atol=1e-3)
    heads = shared_pipe("cogvideox").transformer.config.num_attention_heads
    agree(key[:, :, :3] @ query.mT / heads, expected["ca.query_key_scores"], atol=1e-3)
    maps = scores.softmax(2)[:, :, :3].mean((0, 1))
    agree(maps.unflatten(-1, tuple(case["grid"])), expected["ca.heatmap"])
    torch.testing.assert_close(latents_of(out), expected["ca.latents"], atol=1e-5, rtol=1e-5)


def test_the_grid_of_a_video_is_frames_height_width() -> None:
    grids = []
    model = HookedDiffusion(shared_pipe("cogvideox"))
    with model.concept_streams(["cat"]):
        hook = ("blocks.0.attn.concept.hook_z", lambda _value, hook: grids.append(hook.grid))
        model.run_with_hooks(fwd_hooks=[hook], **settings("cogvideox", "plain"))
    assert set(grids) == {(3, 4, 4)}
