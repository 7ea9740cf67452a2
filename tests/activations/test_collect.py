"""What is collected is what a cache of the same run holds, bit for bit, in every family."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion_lens import ActivationCache, HookedDiffusion, Run, Site
from diffusion_lens.activations import ActivationStore, collect
from diffusion_lens.interventions import scale_heads
from tests.modular import pipelines as modular
from tests.pipelines import FAMILIES, shared_pipe, short
from tests.tiny_pipelines import PIPELINES, tiny_pipeline
from tests.tiny_videos.families import TINY_VIDEOS, fresh_video, tiny_video
from tests.tiny_videos.wan import wan_two

PROMPTS = ["a red cat on the glass table", "two dogs"]
FAST = ("sd", "flux")
NO_TIMESTEP = ("wan_ti2v", "wan_ti2v_image", "cosmos25")
"""Families that embed a timestep for each token, which no point has."""
AFTER_GUIDANCE = ("hook_sample", "hook_guided_pred", "hook_pred_x0")
TOKENS = (("pos",), ("query",), ("frame", "height", "width"), ("height", "width"))

pytestmark = pytest.mark.filterwarnings("ignore")


@functools.cache
def shared(name: str) -> HookedDiffusion:
    if name in FAMILIES:
        return HookedDiffusion(shared_pipe(name))
    return HookedDiffusion(tiny_pipeline(name) if name in PIPELINES else tiny_video(name).pipe)


def settings(name: str) -> dict[str, Any]:
    """Of a run of two steps, guided where the family can be."""
    if name in FAMILIES:
        found = short(name)
        return {key: one for key, one in found.items() if key not in ("latents", "prompt")}
    if name in PIPELINES:
        one = PIPELINES[name]
        size = dict(zip(("height", "width"), one.pixels, strict=True))
        return {"num_inference_steps": 2, **size, **one.settings, **one.unguided}
    video = tiny_video(name)
    left_out = ("prompt", "generator", "output_type")
    return {key: one for key, one in video.settings.items() if key not in left_out}


def by_hand(value: Tensor, axes: tuple[str, ...]) -> Tensor:
    """An activation as [tokens, d], the slow way: token after token."""
    if value.ndim == 4 and len(axes) == 5:  # Z-Image's loop has no frames
        axes = ("batch", "channel", "height", "width")
    tokens = next((one for one in TOKENS if set(one) <= set(axes)), ())
    if not tokens:
        return value.reshape(1, -1)
    last = [axis for axis in axes if axis not in ("batch", *tokens)]
    order = [axes.index(axis) for axis in ("batch", *tokens, *last)]
    (moved,) = value.permute(*order)
    shape = moved.shape[: len(tokens)]
    return torch.stack([moved[at].reshape(-1) for at in np.ndindex(*shape)])


def caches(name: str, sites: Any, **more: Any) -> dict[int, ActivationCache]:
    run = {"output_type": "latent", **settings(name), **more}
    model = shared(name)
    return {
        number: model.run_with_cache(prompt, names_filter=sites, seed=3, **run)[1]
        for number, prompt in enumerate(PROMPTS)
    }


def assert_same(store: ActivationStore, expected: dict[int, ActivationCache]) -> None:
    count = 0
    parts = {(part.index["site"][0], part.values.shape[1]): part for part in store.parts()}
    for number, cache in expected.items():
        for (site, branch), steps in cache.entries.items():
            for step, value in steps.items():
                rows = by_hand(value, cache.axes[site])
                part = parts[site, rows.shape[1]]
                index = part.index
                chosen = (index["prompt"] == number) & (index["step"] == step)
                chosen &= index["branch"] == branch
                kept = part.values[torch.from_numpy(chosen)]
                assert torch.equal(kept, rows)
                assert kept.dtype == value.dtype
                assert set(index["seed"][chosen]) == {3}
                assert set(index["timestep"][chosen]) == {float(cache.times[step])}
                count += len(kept)
    assert count == len(store)


EVERY = [
    pytest.param(name, marks=() if name in FAST else pytest.mark.slow)
    for name in (*FAMILIES, *PIPELINES, *TINY_VIDEOS)
]


@pytest.mark.parametrize("name", EVERY)
def test_rows_are_those_of_a_cache(name: str, tmp_path: Path) -> None:
    model = shared(name)
    points = model.hook_names("blocks.0.**")
    chosen = [one for one in points if one.endswith(("hook_resid_post", "hook_z", "hook_pattern"))]
    sites = [*chosen, "hook_latents", "hook_timestep_emb", *AFTER_GUIDANCE[:2]]
    left_out = ("hook_timestep_emb",) if name in NO_TIMESTEP else ()
    sites = [site for site in sites if site in model.points and site not in left_out]
    sites = list(dict.fromkeys(sites))
    store = collect(model, PROMPTS, sites=sites, out=tmp_path / "s", seeds=[3], **settings(name))
    store.check()
    assert_same(store, caches(name, sites))


@pytest.mark.parametrize("branch", ["uncond", "all"])
@pytest.mark.slow
def test_branches_and_steps_are_those_of_a_cache(branch: str, tmp_path: Path) -> None:
    sites = [Site("blocks.*.cross_attn.img.hook_z", heads=0), "blocks.0.img.hook_resid_post"]
    given = {"branch": branch, "steps": [1]}
    run = settings("sd")
    out = tmp_path / "s"
    store = collect(shared("sd"), PROMPTS, sites=sites, out=out, seeds=[3], **given, **run)
    assert set(store.where(site=store.sites[0]).rows().index["step"]) == {1}
    assert_same(store, caches("sd", sites, **given))


def test_hooks_that_edit_come_first(tmp_path: Path) -> None:
    model, site = shared("sd"), "blocks.1.cross_attn.img.hook_z"
    run = settings("sd")
    with model.hooks([(site, scale_heads(0.5))]):
        store = collect(model, PROMPTS, sites=site, out=tmp_path / "s", seeds=[3], **run)
        expected = caches("sd", site)
    assert_same(store, expected)
    assert not torch.equal(next(iter(expected.values()))[site], caches("sd", site)[0][site])


def test_collecting_changes_no_image(tmp_path: Path) -> None:
    model, run = shared("flux"), settings("flux")
    before = model(PROMPTS[0], seed=3, **run).latents
    given = {"tokens": 3, "latents": True, **run}
    store = collect(model, PROMPTS[0], sites="blocks.0.**", out=tmp_path, seeds=[3], **given)
    assert before is not None
    assert torch.equal(store.latents(0, seed=3), before[0])


@pytest.mark.slow
def test_images_are_kept_as_the_pipeline_makes_them(tmp_path: Path) -> None:
    model = HookedDiffusion.toy("shapes-unet")
    given: dict[str, Any] = {"num_inference_steps": 2}
    store = collect(
        model, "a red circle", sites="mid.hook_h", out=tmp_path / "s", seeds=2, images=True, **given
    )
    for seed in (0, 1):
        image = model("a red circle", seed=seed, **given).image
        assert np.array_equal(np.array(store.image(0, seed=seed)), np.array(image))


@pytest.mark.slow
def test_a_choice_of_tokens_is_the_same_at_every_site_and_step(tmp_path: Path) -> None:
    model, run = shared("flux"), settings("flux")
    sites = "blocks.*.img.hook_resid_post"
    every = collect(model, PROMPTS, sites=sites, out=tmp_path / "all", seeds=2, **run)
    some = collect(model, PROMPTS, sites=sites, out=tmp_path / "3", seeds=2, tokens=3, **run)
    first = some.where(prompt=0, seed=0, step=0, block=0).rows().index["position"]
    choices = set()
    for prompt, seed in ((0, 0), (0, 1), (1, 0), (1, 1)):
        rows = some.where(prompt=prompt, seed=seed)
        for site in some.sites:
            for step in (0, 1):
                found = rows.where(site=site, step=step).rows()
                choices.add(tuple(found.index["position"]))
                whole = every.where(prompt=prompt, seed=seed, site=site, step=step).rows().values
                assert torch.equal(found.values, whole[torch.from_numpy(found.index["position"])])
    assert len(choices) == 4
    assert tuple(first) in choices


@pytest.mark.slow
def test_the_choice_hangs_on_prompt_and_seed_alone(tmp_path: Path) -> None:
    model, run = shared("flux"), settings("flux")
    given: dict[str, Any] = {"sites": "blocks.0.img.hook_resid_post", "tokens": 3, **run}
    one = collect(model, PROMPTS, out=tmp_path / "1", seeds=[5, 7], **given)
    other = collect(model, PROMPTS[::-1], out=tmp_path / "2", seeds=[7], batch_size=2, **given)
    for number, text in enumerate(PROMPTS):
        assert other.prompts[1 - number] == text
        a = one.where(prompt=number, seed=7).rows()
        b = other.where(prompt=1 - number).rows()
        assert np.array_equal(a.index["position"], b.index["position"])
        torch.testing.assert_close(a.values, b.values, rtol=1e-4, atol=1e-5)


def test_a_part_of_the_tokens_keeps_its_positions(tmp_path: Path) -> None:
    model, run = shared("flux"), settings("flux")
    site = Site("blocks.0.img.hook_resid_post", pos=[5, 2, 3])
    store = collect(model, PROMPTS[0], sites=site, out=tmp_path / "s", seeds=[3], steps=[0], **run)
    rows = store.rows()
    assert rows.index["position"].tolist() == [5, 2, 3]
    whole = caches("flux", "blocks.0.img.hook_resid_post")[0].at(step=0)[site.name][0]
    assert torch.equal(rows.values, whole[[5, 2, 3]])


@pytest.mark.slow
def test_several_samples_at_once_are_those_of_one_batch(tmp_path: Path) -> None:
    model, run = shared("sd"), settings("sd")
    site = "blocks.0.img.hook_resid_post"
    given = Run(PROMPTS, seed=(3, 9), **run)
    store = collect(model, given, sites=site, out=tmp_path / "s", batch_size=2)
    _, cache = model.run_with_cache(given, names_filter=site)
    for number, seed in enumerate((3, 9)):
        rows = store.where(prompt=number).rows()
        assert set(rows.index["seed"]) == {seed}
        assert torch.equal(rows.values, cache[site][:, number].flatten(0, 1))


@pytest.mark.slow
def test_two_sites_of_one_point_give_its_rows_once(tmp_path: Path) -> None:
    run = settings("sd")
    sites = ["blocks.0.img.hook_resid_post", "blocks.*.img.hook_resid_post"]
    model, out = shared("sd"), tmp_path / "s"
    store = collect(model, PROMPTS, sites=sites, out=out, seeds=[3], **run)
    assert_same(store, caches("sd", sites[1]))


@pytest.mark.slow
def test_half_precision_is_that_of_a_cache(tmp_path: Path) -> None:
    run, site = settings("sd"), "mid.hook_h"
    given = {"dtype": torch.bfloat16}
    out = tmp_path / "s"
    store = collect(shared("sd"), PROMPTS, sites=site, out=out, seeds=[3], **given, **run)
    assert_same(store, caches("sd", site, **given))


@pytest.mark.slow
@pytest.mark.parametrize(("which", "steps"), [("transformer", [0]), ("transformer_2", [1, 2])])
def test_each_of_two_denoisers_is_collected_by_itself(
    which: str, steps: list[int], tmp_path: Path
) -> None:
    """The second one's first value comes in the middle of a run."""
    two = fresh_video(wan_two)
    model = HookedDiffusion(two.pipe, denoiser=which)
    left_out = ("prompt", "generator", "output_type")
    run = {key: one for key, one in two.settings.items() if key not in left_out}
    given: dict[str, Any] = {"steps": steps, **run}
    site = "blocks.1.img.hook_resid_post"
    store = collect(model, PROMPTS[0], sites=site, out=tmp_path / "s", seeds=[3], **given)
    run["output_type"] = "latent"
    _, cache = model.run_with_cache(PROMPTS[0], names_filter=site, steps=steps, seed=3, **run)
    assert_same(store, {0: cache})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sdxl", "flux"])
def test_modular_pipelines_are_collected_from(name: str, tmp_path: Path) -> None:
    _, pipe = modular.made(name)
    model = HookedDiffusion(pipe)
    run = modular.settings(name)
    run = {key: one for key, one in run.items() if key not in ("latents", "generator", "prompt")}
    run.pop("output_type", None)
    site = "blocks.1.img.hook_resid_post"
    store = collect(model, PROMPTS, sites=site, out=tmp_path / "s", seeds=[3], **run)
    expected = {
        number: model.run_with_cache(prompt, names_filter=site, seed=3, **run)[1]
        for number, prompt in enumerate(PROMPTS)
    }
    assert_same(store, expected)
