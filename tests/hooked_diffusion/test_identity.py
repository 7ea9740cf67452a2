"""Wrapping, reading and failing leave the pipeline bit for bit as it was."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lens import HookContext, HookedDiffusion, Site, read_only
from diffusion_lens.errors import DiffusionLensError, HookNeverFiredError
from tests.pipelines import FAMILIES, fresh_pipe, golden, latents_of, shared_pipe, short, traces


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def pipe(family: str) -> Any:
    return shared_pipe(family)


@pytest.fixture
def model(pipe: Any) -> HookedDiffusion:
    return HookedDiffusion(pipe)


def nothing(_activation: Tensor, _hook: HookContext) -> None:
    return None


@read_only
def reader(_activation: Tensor, _hook: HookContext) -> None:
    return None


def test_a_call_without_hooks_gives_the_bits_of_the_pipeline(
    family: str, pipe: Any, model: HookedDiffusion
) -> None:
    settings = golden(family).settings(output_type="np")
    assert (model(**settings).images == pipe(**settings).images).all()


def test_seeds_make_the_noise_that_generators_make(
    family: str, pipe: Any, model: HookedDiffusion
) -> None:
    settings = short(family)
    del settings["latents"]
    plain = pipe(**settings, generator=torch.Generator().manual_seed(5)).images
    assert torch.equal(latents_of(model(**settings, seed=5)), plain)
    assert not torch.equal(latents_of(model(**settings, seed=6)), plain)


@pytest.mark.parametrize("hook", [nothing, reader])
def test_hooks_that_change_nothing_leave_the_bits(
    family: str, pipe: Any, model: HookedDiffusion, hook: Callable
) -> None:
    settings = short(family)
    plain = pipe(**settings).images
    out = model.run_with_hooks(fwd_hooks=[("**", hook)], **settings)
    assert torch.equal(latents_of(out), plain)
    assert {row.name for row in out.report} == set(model.hook_names())
    assert all(row.edited == 0 for row in out.report)


@pytest.mark.slow
def test_hooks_that_change_nothing_leave_the_bits_one_by_one(
    family: str, pipe: Any, model: HookedDiffusion
) -> None:
    settings = short(family, steps=1)
    plain = pipe(**settings).images
    kinds = {re.sub(r"\d+", "*", name): name for name in model.points}
    for name in kinds.values():
        out = model.run_with_hooks(fwd_hooks=[(name, nothing)], **settings)
        assert torch.equal(latents_of(out), plain), name


@pytest.mark.slow
def test_caching_every_point_leaves_the_bits(
    family: str, pipe: Any, model: HookedDiffusion
) -> None:
    settings = short(family)
    plain = pipe(**settings).images
    out, cache = model.run_with_cache(names_filter="**", branch="all", **settings)
    assert torch.equal(latents_of(out), plain)
    assert cache.keys() and set(cache.keys()) == set(model.hook_names())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_hooks_that_change_nothing_leave_the_bits_in_half_precision(
    family: str, dtype: torch.dtype
) -> None:
    pipe = fresh_pipe(family).to(dtype)
    settings = short(family, steps=1)
    settings["latents"] = settings["latents"].to(dtype)
    plain = pipe(**settings).images
    assert plain.dtype == dtype and plain.isfinite().all()
    model = HookedDiffusion(pipe)
    for hook in (nothing, reader):
        out = model.run_with_hooks(fwd_hooks=[("**", hook)], **settings)
        assert torch.equal(latents_of(out), plain)


@pytest.mark.slow
def test_nothing_is_attached_outside_of_contexts(
    family: str, pipe: Any, model: HookedDiffusion
) -> None:
    before, call = traces(pipe), type(pipe).__call__
    model(**short(family, steps=1))
    assert traces(pipe) == before
    with model.hooks([("**", nothing)]):
        inside = traces(pipe)
        assert inside["torch hooks"] > len(model.points) // 2
        assert inside["attributes"] == before["attributes"]  # the class is observed, not the object
        assert type(pipe).__call__ is not call
    assert traces(pipe) == before
    model.run_with_cache(names_filter="**", **short(family, steps=1))
    model.denoise(golden(family).inputs["latents"], step=0, **_denoising(family))
    assert traces(pipe) == before and type(pipe).__call__ is call


def _denoising(family: str) -> dict[str, Any]:
    settings = short(family)
    del settings["latents"], settings["output_type"]
    return settings


def names_of_each_kind(model: HookedDiffusion) -> list[str]:
    """One name of every kind of source, so that every way of attaching is tried."""
    return list({type(point.source): name for name, point in model.points.items()}.values())


class Stop:
    """Raises at the second evaluation."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __call__(self, _activation: Tensor, hook: HookContext) -> None:
        if hook.step == 1:
            raise self.error("stopped by the hook")


@pytest.mark.slow
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_in_a_hook_leaves_the_model_as_it_was(
    family: str, pipe: Any, model: HookedDiffusion, error: type[BaseException]
) -> None:
    settings = short(family)
    plain, before = pipe(**settings).images, traces(pipe)
    for name in names_of_each_kind(model):
        with pytest.raises(error, match="stopped by the hook"):
            model.run_with_hooks(fwd_hooks=[(name, Stop(error))], **settings)
        assert traces(pipe) == before, name
    assert torch.equal(pipe(**settings).images, plain)
    assert torch.equal(latents_of(model(**settings)), plain)


@pytest.mark.slow
def test_an_error_outside_of_hooks_leaves_the_model_as_it_was(
    family: str, pipe: Any, model: HookedDiffusion
) -> None:
    before = traces(pipe)

    def interrupt(*_: Any) -> dict:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.run_with_cache(
            names_filter="**", callback_on_step_end=interrupt, **short(family, steps=1)
        )
    assert traces(pipe) == before
    with pytest.raises(ValueError), model.hooks([("**", nothing)]):
        model(**short(family, callback_on_step_end_tensor_inputs=["nonsense"]))
    assert traces(pipe) == before


def test_a_run_after_an_interrupted_one_counts_from_the_start(
    family: str, model: HookedDiffusion
) -> None:
    with pytest.raises(KeyboardInterrupt):
        model.run_with_hooks(fwd_hooks=[("hook_latents", Stop(KeyboardInterrupt))], **short(family))
    seen = []

    def note(_activation: Tensor, hook: HookContext) -> None:
        seen.append((hook.step, hook.branch))

    model.run_with_hooks(fwd_hooks=[(Site("hook_latents", branch="cond"), note)], **short(family))
    assert [step for step, _ in seen] == list(range(len(seen)))


def test_the_error_of_a_hook_says_where_it_was_raised(family: str, model: HookedDiffusion) -> None:
    with pytest.raises(ValueError, match="stopped by the hook") as caught:
        model.run_with_hooks(
            fwd_hooks=[("blocks.0.attn.hook_pattern", Stop(ValueError))], **short(family)
        )
    (note,) = caught.value.__notes__
    assert "blocks.0.attn.hook_pattern, step 1, branch" in note and "of shape (1, " in note


def test_a_failed_registration_keeps_the_hooks_that_were_on(
    family: str, model: HookedDiffusion
) -> None:
    seen = []
    with model.hooks([("hook_latents", lambda activation, hook: seen.append(hook.step))]):
        with pytest.raises(DiffusionLensError), model.hooks([("no.such.name", nothing)]):
            pass
        model(**short(family, steps=1))
    assert seen


def test_the_schedulers_state_does_not_leak_from_denoise_into_runs(
    family: str, pipe: Any, model: HookedDiffusion
) -> None:
    settings = short(family)
    plain = pipe(**settings).images
    model.denoise(golden(family).inputs["latents"], noise_level=0.3, **_denoising(family))
    assert torch.equal(pipe(**settings).images, plain)


def test_silent_hooks_are_refused_and_come_off(family: str, pipe: Any) -> None:
    model, before = HookedDiffusion(pipe), traces(pipe)
    with pytest.raises(HookNeverFiredError):
        model.run_with_hooks(fwd_hooks=[(Site("hook_latents", steps=99), nothing)], **short(family))
    assert traces(pipe) == before
