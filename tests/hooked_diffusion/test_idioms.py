"""What TransformerLens users write does what it says, at every kind of hook point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lens import HookContext, HookedDiffusion, Site
from diffusion_lens.errors import DeadHookPointError
from tests.pipelines import (
    FAMILIES,
    branches_of,
    evaluate,
    evaluation_of,
    kinds_of,
    latents_of,
    shared_pipe,
    short,
    traces,
)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(family: str) -> HookedDiffusion:
    return HookedDiffusion(shared_pipe(family))


def edit_and_return(activation: Tensor, hook: HookContext) -> Tensor:
    activation[:] = activation * 0.5
    return activation


def edit_without_return(activation: Tensor, hook: HookContext) -> None:
    activation *= 0.5


def edit_through_a_view(activation: Tensor, hook: HookContext) -> None:
    for sample in activation:
        sample.mul_(0.5)


def return_anew(activation: Tensor, hook: HookContext) -> Tensor:
    return activation * 0.5


EDITS = (edit_and_return, edit_without_return, edit_through_a_view, return_anew)


@pytest.mark.slow
def test_every_way_to_edit_counts_at_every_kind_of_point(
    family: str, model: HookedDiffusion
) -> None:
    plain = evaluate(model, family)
    for name in kinds_of(model):
        edits = EDITS if "attn.img" in name or "resid" in name else EDITS[1::2]
        found = [evaluate(model, family, (name, edit)) for edit in edits]
        assert not torch.equal(found[0], plain), name
        for other in found[1:]:
            assert torch.equal(other, found[0]), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hook_guided_pred", "hook_pred_x0", "hook_noise_pred"])
@pytest.mark.parametrize("family", ["sd", "sdxl", "flux"], indirect=True)
def test_every_way_to_edit_counts_at_predictions(
    family: str, model: HookedDiffusion, name: str
) -> None:
    settings = short(family)
    plain = latents_of(model(**settings))
    found = [
        latents_of(model.run_with_hooks(fwd_hooks=[(name, edit)], **settings)) for edit in EDITS
    ]
    assert not torch.allclose(found[0], plain, atol=1e-3)
    assert all(torch.equal(other, found[0]) for other in found[1:])


def test_an_edit_is_reported_with_its_mean_change(family: str, model: HookedDiffusion) -> None:
    def add_two(activation: Tensor, hook: HookContext) -> Tensor:
        return activation + 2

    out = model.run_with_hooks(fwd_hooks=[("blocks.1.attn.img.hook_q", add_two)], **short(family))
    (row,) = out.report
    assert row.name == "blocks.1.attn.img.hook_q" and row.edited == row.fired > 0
    assert row.change == pytest.approx(2, rel=1e-5)
    assert "add_two" in row.hook and "add_two" in str(out.report)


@pytest.mark.slow
def test_names_are_given_by_predicates_and_patterns(family: str, model: HookedDiffusion) -> None:
    def run(where: Any) -> list[str]:
        seen: list[str] = []
        evaluate(model, family, (where, lambda _value, hook: seen.append(hook.name)))
        return sorted(set(seen))

    expected = sorted(f"blocks.{block}.attn.hook_pattern" for block in range(model.n_blocks))
    assert run(lambda name: name.endswith(".attn.hook_pattern")) == expected
    assert run("blocks.*.attn.hook_pattern") == expected
    assert run("**.attn.hook_pattern") == expected
    assert run(Site(lambda name: name.endswith(".attn.hook_pattern"))) == expected
    assert model.hook_names(lambda name: name == expected[0]) == expected[:1]


def image_and_text(model: HookedDiffusion, block: int, what: str) -> list[str]:
    names = [f"blocks.{block}.attn.{stream}.{what}" for stream in ("img", "txt")]
    return [name for name in names if name in model.points]


@pytest.mark.slow
def test_heads_are_ablated_by_index(family: str, model: HookedDiffusion) -> None:
    for block in (0, model.n_blocks - 1):
        for head in (0, 1):

            def no_z(z: Tensor, hook: HookContext, head: int = head) -> Tensor:
                z[:, :, head] = 0
                return z

            def no_pattern(pattern: Tensor, hook: HookContext, head: int = head) -> Tensor:
                pattern[:, head] = 0
                return pattern

            names = [
                name
                for name in image_and_text(model, block, "hook_z")
                if model.points[name].dead is None
            ]
            by_z = evaluate(model, family, *[(name, no_z) for name in names])
            by_pattern = evaluate(model, family, (f"blocks.{block}.attn.hook_pattern", no_pattern))
            by_site = evaluate(
                model, family, *[(Site(name, heads=head), lambda z, _: z * 0) for name in names]
            )
            torch.testing.assert_close(by_pattern, by_z, atol=2e-4, rtol=2e-4)
            assert torch.equal(by_site, by_z)
            assert not torch.allclose(by_z, evaluate(model, family), atol=1e-4)


def cached(model: HookedDiffusion, family: str, names: Any = "**") -> Any:
    with (
        torch.no_grad(),
        model.caching(names, branch="all", branches=branches_of(family)) as cache,
    ):
        model.denoiser(**evaluation_of(family))
    return cache


class Patch:
    """Puts in what a cache holds for the same name, branch and step."""

    def __init__(self, cache: Any) -> None:
        self.cache = cache

    def __call__(self, activation: Tensor, hook: HookContext) -> Tensor:
        return self.cache.entries[hook.name, hook.branch][hook.step]


@pytest.mark.slow
def test_patching_from_the_runs_own_cache_changes_no_bit(
    family: str, model: HookedDiffusion
) -> None:
    settings = short(family)
    plain, cache = model.run_with_cache(
        names_filter="**", branch="all", show_progress=False, **settings
    )
    alive = {name for name, point in model.points.items() if point.dead is None}
    out = model.run_with_hooks(fwd_hooks=[(lambda name: name in alive, Patch(cache))], **settings)
    assert torch.equal(latents_of(out), latents_of(plain))
    assert {row.name for row in out.report if row.edited} == alive
    assert all(row.change == 0 for row in out.report)


@pytest.mark.slow
def test_patching_one_point_from_its_own_cache_changes_no_bit(
    family: str, model: HookedDiffusion
) -> None:
    plain, names = evaluate(model, family), kinds_of(model)
    cache = cached(model, family, names)
    for name in names:
        assert torch.equal(evaluate(model, family, (name, Patch(cache))), plain), name


def test_patching_predictions_of_another_run_gives_that_run(
    family: str, model: HookedDiffusion
) -> None:
    settings = short(family)
    other = {**settings, "prompt": "a blue house"}
    wanted, cache = model.run_with_cache(
        names_filter="hook_noise_pred", branch="all", show_progress=False, **other
    )
    assert not torch.equal(latents_of(wanted), latents_of(model(**settings)))
    patched = model.run_with_hooks(fwd_hooks=[("hook_noise_pred", Patch(cache))], **settings)
    assert torch.equal(latents_of(patched), latents_of(wanted))


def test_dead_points_can_be_read_but_not_edited(family: str, model: HookedDiffusion) -> None:
    dead = [name for name, point in model.points.items() if point.dead]
    assert bool(dead) == (family == "flux") or family in ("sd3", "sd35")
    plain = evaluate(model, family)
    for name in dead:
        assert torch.equal(evaluate(model, family, (name, lambda *_: None)), plain)
        with pytest.raises(DeadHookPointError, match="cannot change the output") as caught:
            evaluate(model, family, (name, return_anew))
        assert name in str(caught.value) and "Read it, or edit an earlier block" in str(
            caught.value
        )


@pytest.mark.parametrize("family", ["sd3", "sd35", "flux"], indirect=True)
def test_dead_rows_of_a_living_pattern_are_refused(family: str, model: HookedDiffusion) -> None:
    name = f"blocks.{model.n_blocks - 1}.attn.hook_pattern"
    with pytest.raises(DeadHookPointError, match="rows of text queries only"):
        evaluate(model, family, (Site(name, query="txt"), return_anew))
    evaluate(model, family, (Site(name, query="img"), return_anew))
    evaluate(model, family, (name, return_anew))


@pytest.mark.slow
def test_caches_see_values_after_edits(family: str, model: HookedDiffusion) -> None:
    names = [
        "blocks.0.attn.img.hook_z",
        "blocks.0.attn.hook_pattern",
        "blocks.0.img.hook_resid_mid",
        "blocks.0.img.hook_mlp_update",
    ]
    before = cached(model, family, names)
    for name in names:
        with model.caching(name, branches=branches_of(family)) as after:
            evaluate(model, family, (name, return_anew))
        first, second = before.cond[name], after[name]
        torch.testing.assert_close(second, first * 0.5, msg=name)


def test_a_cache_opened_first_still_sees_later_edits(family: str, model: HookedDiffusion) -> None:
    name, settings = "blocks.0.attn.img.hook_q", short(family, steps=1)
    _, plain = model.run_with_cache(names_filter=name, show_progress=False, **settings)
    with model.caching(name) as cache, model.hooks([(name, lambda q, _: q * 3)]):
        model(**settings)
    torch.testing.assert_close(cache[name], plain[name] * 3)


def test_hooks_run_in_the_order_of_registration(family: str, model: HookedDiffusion) -> None:
    name = "blocks.0.attn.img.hook_v"
    plus: tuple = (name, lambda v, _: v + 1)
    double: tuple = (name, lambda v, _: v * 2)
    value = cached(model, family, name).cond[name]
    for hooks, expected in (
        ((plus, double), (value + 1) * 2),
        ((double, plus), value * 2 + 1),
    ):
        with model.caching(name, branches=branches_of(family)) as cache:
            evaluate(model, family, *hooks)
        torch.testing.assert_close(cache[name], expected)


def test_overlapping_sites_apply_in_the_order_of_registration(
    family: str, model: HookedDiffusion
) -> None:
    name = "blocks.0.attn.hook_pattern"
    value = cached(model, family, name).cond[name]
    one: tuple = (Site(name, heads=[0, 1]), lambda p, _: p + 1)
    two: tuple = (Site(name, heads=[1, 2], key=[0, 2]), lambda p, _: p * 2)
    for hooks in ((one, two), (two, one)):
        expected = value.clone()
        for site, _ in hooks:
            if site is one[0]:
                expected[:, :, 0:2] += 1
            else:
                for head in (1, 2):
                    for key in (0, 2):
                        expected[:, :, head, :, key] *= 2
        with model.caching(name, branches=branches_of(family)) as cache:
            evaluate(model, family, *hooks)
        torch.testing.assert_close(cache[name], expected)


def test_add_hook_stays_until_reset_and_permanent_hooks_longer(
    family: str, model: HookedDiffusion
) -> None:
    before, counts = traces(model.pipe), {"added": 0, "permanent": 0}

    def count(which: str) -> Callable:
        def hook_function(_value: Tensor, hook: HookContext) -> None:
            counts[which] += hook.branch == "cond" and hook.step == 0

        return hook_function

    settings = short(family, steps=1)
    model.add_hook("hook_latents", count("added"))
    model.add_perma_hook("hook_latents", count("permanent"))
    model(**settings)
    assert counts == {"added": 1, "permanent": 1}
    model.reset_hooks()
    model(**settings)
    assert counts == {"added": 1, "permanent": 2}
    model.reset_hooks(including_permanent=True)
    model(**settings)
    assert counts == {"added": 1, "permanent": 2}
    assert traces(model.pipe) == before


def test_nested_contexts_take_off_only_their_own_hooks(family: str, model: HookedDiffusion) -> None:
    name, seen = "blocks.0.img.hook_resid_pre", []
    outer: tuple = (name, lambda *_: seen.append("outer"))
    inner: tuple = (name, lambda *_: seen.append("inner"))
    call: Any = {"branches": branches_of(family)}
    with torch.no_grad(), model.hooks([outer], **call):
        with model.hooks([inner], **call):
            model.denoiser(**evaluation_of(family))
        assert set(seen) == {"outer", "inner"}
        seen.clear()
        model.denoiser(**evaluation_of(family))
        assert set(seen) == {"outer"}
    seen.clear()
    model.denoiser(**evaluation_of(family))
    assert not seen


def test_hooks_fire_on_the_users_own_calls_of_the_pipeline(
    family: str, model: HookedDiffusion
) -> None:
    settings, pipe = short(family), shared_pipe(family)
    edit: Any = ("blocks.0.attn.img.hook_z", return_anew)
    wrapped = latents_of(model.run_with_hooks(fwd_hooks=[edit], **settings))
    with model.hooks([edit]):
        assert torch.equal(pipe(**settings).images, wrapped)
    assert not torch.equal(pipe(**settings).images, wrapped)
    with model.caching("hook_latents") as cache:
        pipe(**settings)
    assert cache.steps[0] == 0 and len(cache["hook_latents"]) == len(cache.steps) >= 2


def test_a_caching_context_keeps_the_last_of_several_runs(
    family: str, model: HookedDiffusion
) -> None:
    settings = short(family, steps=1)
    other = {**settings, "prompt": "a blue house"}
    _, wanted = model.run_with_cache(names_filter="hook_text_emb", show_progress=False, **other)
    with model.caching("hook_text_emb") as cache:
        model(**settings)
        model(**other)
    assert torch.equal(cache["hook_text_emb"], wanted["hook_text_emb"])


@pytest.mark.parametrize("family", ["sd", "flux"], indirect=True)
def test_native_names_are_the_modules_that_run(family: str, model: HookedDiffusion) -> None:
    pattern = {"sd": "native:mid_block.**", "flux": "native:transformer_blocks.1.**"}[family]
    ran: set[str] = set()
    names = model.hook_names(pattern)
    modules = {name: model.denoiser.get_submodule(name.removeprefix("native:")) for name in names}
    assert len(names) > 10
    assert not any(
        isinstance(module, torch.nn.ModuleList | torch.nn.ModuleDict) for module in modules.values()
    )
    plain = evaluate(model, family)
    hook = (pattern, lambda _value, hook: ran.add(hook.name))
    assert torch.equal(evaluate(model, family, hook), plain)
    assert ran == set(names)
