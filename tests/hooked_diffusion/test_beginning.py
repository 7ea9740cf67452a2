"""The beginning of a run: its first step, how long the run would be, and nothing left of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diffusion_lens import HookedDiffusion, Run
from diffusion_lens.authoring import beginning
from diffusion_lens.errors import HookNeverFiredError, RunError
from diffusion_lens.hook_points import Site
from tests.pipelines import fresh_pipe, latents_of, short, traces

SITE = "blocks.0.img.hook_resid_post"


def reading(seen: list[tuple[str, int, str]]) -> Any:
    def read(_value: Any, hook: Any) -> None:
        seen.append((hook.name, hook.step, hook.branch))

    read.read_only = True  # type: ignore[attr-defined]
    return read


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_one_step_runs_and_nothing_stays(name: str) -> None:
    pipe = fresh_pipe(name)
    model, run = HookedDiffusion(pipe), Run(seed=0, **short(name, steps=4))
    calls: list[int] = []
    denoiser = model.denoiser
    handle = denoiser.register_forward_hook(lambda *_: calls.append(1))
    expected = latents_of(model(run))
    in_all = len(calls)
    calls.clear()
    before = traces(pipe), {key: str(value) for key, value in vars(pipe.scheduler).items()}
    seen: list[tuple[str, int, str]] = []
    found = beginning(model, run, [(SITE, reading(seen))])
    assert (traces(pipe), {key: str(one) for key, one in vars(pipe.scheduler).items()}) == before
    assert {step for _, step, _ in seen} == {0}
    assert len(calls) * (in_all // len(calls)) == in_all
    assert found.evaluations == in_all
    handle.remove()

    assert torch.equal(latents_of(model(run)), expected)
    with model.hooks([(SITE, reading([]))]):  # others may be open
        assert beginning(model, run, [(SITE, reading([]))]) == found


def test_it_waits_for_what_comes_later() -> None:
    model, seen = HookedDiffusion.toy("shapes-unet"), []
    site = Site(SITE, steps=slice(2, None), branch="cond")
    found = beginning(model, Run("a red circle", num_inference_steps=5), [(site, reading(seen))])
    assert found.steps == 5
    assert seen == [(SITE, 2, "cond")]


def test_what_never_comes_is_refused() -> None:
    model = HookedDiffusion.toy("shapes-unet")
    run = Run("a red circle", num_inference_steps=2, guidance_scale=0.0)
    with pytest.raises(HookNeverFiredError, match="never fired"):
        beginning(model, run, [(Site(SITE, branch="uncond"), reading([]))])
    parts = [(Site(SITE, pos=at), reading([])) for at in (0, 1)]
    with pytest.raises(RunError, match="selected in two ways"):
        beginning(model, run, parts)
    assert not model.registrations
