"""What stacks with what and in which order, and what a step axis begins with."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from diffusion_lens import ActivationCache, HookedDiffusion, Site
from diffusion_lens.errors import CacheKeyError, UnknownHookPointError
from tests.pipelines import shared_pipe, short

POST = [f"blocks.{block}.img.hook_resid_post" for block in (2, 0, 1)]


@pytest.fixture(scope="module")
def model() -> HookedDiffusion:
    return HookedDiffusion(shared_pipe("sd3"))


def recorded(model: HookedDiffusion, names: Any, **options: Any) -> ActivationCache:
    settings = short("sd3", steps=3)
    return model.run_with_cache(names_filter=names, show_progress=False, **settings, **options)[1]


def refused(message: str) -> Any:
    return pytest.raises(CacheKeyError, match=re.escape(message))


def test_names_stack_in_the_order_in_which_they_are_asked(model: HookedDiffusion) -> None:
    cache = recorded(model, POST)
    for asked in (POST, sorted(POST), POST[:2], [POST[1], POST[1]]):
        assert torch.equal(cache.stack(asked), torch.stack([cache[name] for name in asked]))
    assert torch.equal(cache.stack([POST[0], "blocks.*.img.hook_resid_post"])[0], cache[POST[0]])
    assert torch.equal(cache.at(step=1).stack(POST), cache.stack(POST)[:, 1])
    with pytest.raises(UnknownHookPointError, match="in this cache"):
        cache.stack([POST[0], "blocks.7.img.hook_resid_post"])
    with refused("stack([]) names nothing"):
        cache.stack([])


def test_patterns_stack_in_the_order_of_blocks() -> None:
    order = [10, 2, 0]
    entries = {
        (f"{prefix}blocks.{block}.img.x", "cond"): {0: torch.tensor([base + block])}
        for prefix, base in (("", 0), ("denoiser2.", 100))
        for block in order
    }
    cache = ActivationCache(entries)
    assert cache.stack("img.x").flatten().tolist() == [0, 2, 10]
    assert cache.stack("denoiser2.**.img.x").flatten().tolist() == [100, 102, 110]
    both = cache.stack(["**.img.x", "denoiser2.**.img.x"])
    assert both.flatten().tolist() == [0, 2, 10, 100, 102, 110]


def test_blocks_of_different_steps_do_not_stack(model: HookedDiffusion) -> None:
    sites = [Site(name, steps=[step]) for name, step in zip(POST, (0, 2, 0), strict=True)]
    cache = recorded(model, sites)
    with refused(
        "'img.hook_resid_post' has 2 groups in this cache that do not stack, since they differ in "
        "steps: shape (1, 64, 24), branch cond, steps 2: blocks.0.img.hook_resid_post; shape (1, "
        "64, 24), branch cond, steps 0: blocks.1.img.hook_resid_post, blocks.2.img"
    ):
        cache.stack("img.hook_resid_post")
    assert torch.equal(cache.stack([POST[0], POST[2]])[1], cache[POST[2]])


def test_branches_and_reduced_values_do_not_stack_with_others(model: HookedDiffusion) -> None:
    sites = [Site(POST[0], branch="cond"), Site(POST[1], branch="uncond")]
    with refused("since they differ in branch: shape (1, 64, 24), branch cond, steps 0-2"):
        recorded(model, sites).stack(POST[:2])
    value = torch.zeros(3, 2)
    entries = {("blocks.0.x", "cond"): {0: value}, ("blocks.1.x", "cond"): {-1: value}}
    with refused("since they differ in steps: shape (3, 2), branch cond, steps 0: blocks.0.x; "
                 "shape (3, 2), branch cond, reduced over steps: blocks.1.x"):  # fmt: skip
        ActivationCache(entries).stack("x")
    entries = {("blocks.0.x", "cond"): {0: value}, ("blocks.1.x", "cond"): {0: value.T}}
    with refused("since they differ in shape"):
        ActivationCache(entries).stack("x")
    entries = {("blocks.0.x", "cond"): {0: value}, ("blocks.0.y", "cond"): {0: value}}
    axes = {"blocks.0.x": ("batch", "head"), "blocks.0.y": ("batch", "pos")}
    with refused("since they differ in axes"):
        ActivationCache(entries, axes=axes).stack(["blocks.0.x", "blocks.0.y"])


def test_the_step_axis_holds_the_steps_of_its_name(model: HookedDiffusion) -> None:
    cache = recorded(model, [Site(POST[0], steps=[2]), "hook_latents"])
    assert cache.steps == [0, 1, 2]
    assert cache.steps_of(POST[0]) == [2] and cache.steps_of("hook_latents") == [0, 1, 2]
    assert cache.steps_of(("img.hook_resid_post", 2)) == [2]
    assert torch.equal(cache[POST[0]][0], cache.at(step=2)[POST[0]])
    assert POST[0] not in cache.at(step=0)
    assert recorded(model, "hook_latents", reduce="mean").steps_of("hook_latents") == []
    with pytest.raises(CacheKeyError, match="is not in this cache"):
        cache.steps_of("hook_sample")


def test_a_name_of_several_branches_is_in_the_cache(model: HookedDiffusion) -> None:
    cache = recorded(model, POST[0], branch="all")
    assert POST[0] in cache and ("img.hook_resid_post", 2) in cache
    assert ("img.hook_resid_post", 2, "uncond") in cache
    assert ("img.hook_resid_post", 2, "skip") not in cache and 3 not in cache


def test_runs_of_two_sizes_in_one_cache_are_not_stacked() -> None:
    entries = {("x", "cond"): {0: torch.zeros(1, 4), 1: torch.zeros(2, 4)}}
    cache = ActivationCache(entries)
    with refused("'x' has other shapes at other steps ((1, 4), (2, 4)): runs of several sizes"):
        cache["x"]
    assert cache.at(step=1)["x"].shape == (2, 4)
