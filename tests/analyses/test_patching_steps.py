"""What a Site says of steps, branch and heads is what a sweep patches there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lens import HookedDiffusion, Site
from diffusion_lens.analyses import attribution_patching
from diffusion_lens.analyses.patching import (
    PatchingResult,
    activation_patching,
    latent_projection,
    patch_residuals,
)
from diffusion_lens.errors import PatchingError, SiteError
from diffusion_lens.interventions import replace_with
from diffusion_lens.metrics.recovery import recovery
from tests.pipelines import latents_of, shared_pipe, short

CLEAN, CORRUPTED = "a red cat on a table", "a blue dog on a table"
Z = "blocks.*.attn.img.hook_z"
FIRST, SECOND = "blocks.0.attn.img.hook_z", "blocks.1.attn.img.hook_z"


@pytest.fixture
def model() -> HookedDiffusion:
    return HookedDiffusion(shared_pipe("sd3"))


def settings_of(family: str = "sd3", **more: Any) -> dict[str, Any]:
    fixed = ("latents", "prompt", "output_type")
    return {name: one for name, one in short(family, **more).items() if name not in fixed}


def patched(model: HookedDiffusion, sites: Any, **more: Any) -> PatchingResult:
    given = {"seeds": (3,), "show_progress": False, **settings_of(steps=4), **more}
    return activation_patching(model, CLEAN, CORRUPTED, sites=sites, **given)


def assert_close(found: Tensor, expected: Tensor, **more: Any) -> None:
    """Equal but for rounding, which depends on what else is in a batch."""
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, **more)


@pytest.mark.slow
def test_a_sites_steps_are_those_that_are_patched(model: HookedDiffusion) -> None:
    whole = patched(model, Z, axes=("block", "step"))
    some = patched(model, Site(Z, steps=range(1, 3)), axes=("block", "step"))
    assert some.labels["step"] == (1, 2)
    assert_close(some.effects, whole.effects[:, 1:3])
    mean = patched(model, Site(Z, steps=range(1, 3)))
    assert_close(mean.effects, whole.effects[:, 1:3].mean(1))
    text = patched(model, f"{Z}[step=1:3]")
    assert torch.equal(text.samples, mean.samples)


@pytest.mark.slow
def test_steps_of_a_site_go_before_those_of_the_sweep(model: HookedDiffusion) -> None:
    """As its branch goes before `branch=`, and as in a cache."""
    sites = [Site(FIRST, steps=[3]), SECOND]
    found = patched(model, sites, axes=("block", "step"), steps=[0, 1])
    whole = patched(model, [FIRST, SECOND], axes=("block", "step"))
    assert found.labels["step"] == (0, 1, 3)
    expected = whole.effects[:, [0, 1, 3]]
    expected[0, :2] = torch.nan
    expected[1, 2] = torch.nan
    assert_close(found.effects, expected, equal_nan=True)
    mean = patched(model, sites, steps=[0, 1])
    assert_close(mean.effects, torch.stack([whole.effects[0, 3], whole.effects[1, :2].mean()]))


def test_parts_of_one_patch_may_have_steps_of_their_own(model: HookedDiffusion) -> None:
    both = patched(model, [FIRST, SECOND], axes=("stream", "step"))
    first = patched(model, FIRST, axes=("stream", "step"))
    found = patched(model, [FIRST, Site(SECOND, steps=slice(2, None))], axes=("stream", "step"))
    assert_close(found.effects[:, :2], first.effects[:, :2])
    assert_close(found.effects[:, 2:], both.effects[:, 2:])


def test_whole_runs_are_patched_at_a_sites_steps(model: HookedDiffusion) -> None:
    """Against one hooked run."""
    site = Site(FIRST, steps=[1, 3])
    settings: dict[str, Any] = {**settings_of(steps=4), "output_type": "latent"}
    found = patched(
        model, [site, Site(SECOND, steps=[2])], axes=(), mode="on-trajectory", seeds=[3]
    )
    source, cache = model.run_with_cache(
        CLEAN, seed=3, names_filter=[FIRST, SECOND], branch="all", **settings
    )
    base = model(CORRUPTED, seed=3, **settings)
    hooks = [
        (Site(FIRST, steps=[1, 3], branch="cond"), replace_with(cache)),
        (Site(SECOND, steps=[2], branch="cond"), replace_with(cache)),
    ]
    one = model.run_with_hooks(CORRUPTED, seed=3, fwd_hooks=hooks, **settings)
    expected = recovery(*(latents_of(out) for out in (one, source, base)))
    assert_close(found.effects.float(), expected[0])


def test_windows_go_over_the_steps_at_which_something_is_patched(model: HookedDiffusion) -> None:
    given: dict[str, Any] = {"axes": ("block", "step"), "mode": "window", "window": 1}
    whole = patched(model, [FIRST, SECOND], **given)
    found = patched(model, [Site(FIRST, steps=[1]), Site(SECOND, steps=[1, 2])], **given)
    assert found.labels["step"] == (1, 2)
    expected = whole.effects[:, 1:3]
    expected[0, 1] = torch.nan
    assert_close(found.effects, expected, equal_nan=True)
    assert len(found.records()) == 3


@pytest.mark.parametrize(
    ("mode", "steps"),
    [
        ("teacher-forced", range(2, 6)),
        ("teacher-forced", slice(4, None)),
        ("on-trajectory", [7]),
        ("on-trajectory", [0, 4]),
        ("window", [0, 4]),
    ],
)
def test_steps_that_the_run_has_not_are_refused(
    model: HookedDiffusion, mode: str, steps: Any
) -> None:
    more: dict[str, Any] = {"mode": mode}
    more |= {"axes": ("block", "step") if mode == "window" else ("block",)}
    with pytest.raises(Exception, match=r"step"):  # the engine's own words where nothing is left
        patched(model, Site(FIRST, steps=steps), **more)


def test_heads_of_a_site_are_patched_together_or_apart(model: HookedDiffusion) -> None:
    apart = patched(model, Site(FIRST, heads=[0, 1]), axes=("head",), metric=latent_projection)
    assert apart.labels["head"] == (0, 1)
    pairs = patched(
        model, Site(Z, heads=[(0, 0), (0, 1)]), axes=("head",), metric=latent_projection
    )
    assert_close(pairs.effects, apart.effects)
    together = patched(model, Site(FIRST, heads=[0, 1]), axes=(), metric=latent_projection)
    assert together.effects.ndim == 0
    assert not torch.isclose(together.effects, apart.effects[0])
    with pytest.raises(SiteError, match="head 99 was asked for"):
        patched(model, Site(FIRST, heads=[99]))


def test_a_sites_branch_goes_before_that_of_the_sweep(model: HookedDiffusion) -> None:
    given: dict[str, Any] = {"axes": (), "mode": "on-trajectory"}
    uncond = patched(model, FIRST, branch="uncond", **given)
    assert torch.equal(
        patched(model, Site(FIRST, branch="uncond"), **given).samples, uncond.samples
    )
    cond = patched(model, Site(FIRST, branch="cond"), branch="uncond", **given)
    assert torch.equal(cond.samples, patched(model, FIRST, **given).samples)
    with pytest.raises(PatchingError, match=r"in the branch 'uncond'; use mode='on-trajectory'"):
        patched(model, Site(FIRST, branch="uncond"))


def test_the_named_sweeps_take_sites_too(model: HookedDiffusion) -> None:
    site = Site("blocks.*.img.hook_resid_post", steps=1)
    more = {"seeds": 1, "show_progress": False, **settings_of()}
    found = patch_residuals(model, CLEAN, CORRUPTED, sites=site, **more)
    assert found.made_by["sites"][0].endswith("[step=1,branch=cond]")


def test_attribution_estimates_a_sites_steps_alone(model: HookedDiffusion) -> None:
    given: dict[str, Any] = {"axes": ("block", "step"), "seeds": 2, "show_progress": False}
    given |= settings_of()
    whole = attribution_patching(model, CLEAN, CORRUPTED, sites=[FIRST, SECOND], **given)
    sites = [Site(FIRST, steps=[1]), SECOND]
    found = attribution_patching(model, CLEAN, CORRUPTED, sites=sites, **given)
    expected = whole.effects.clone()
    expected[0, 0] = torch.nan
    assert_close(found.effects, expected, equal_nan=True)
