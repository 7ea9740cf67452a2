"""Gradients of losses over activations, and loops that change their latents by them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lens import HookedDiffusion, Run, Site
from diffusion_lens.errors import ArgumentError, RunError, SiteError
from diffusion_lens.interventions import (
    LatentUpdate,
    PatternGradient,
    descend,
    run_with_latent_update,
)
from tests.pipelines import fresh_pipe, latents_of, shared_pipe, short, traces

PROMPT = "a red cat on the glass table"
FAMILIES = ["sd", "sdxl", "sd3", "flux"]


def model(name: str = "sd") -> HookedDiffusion:
    return HookedDiffusion(shared_pipe(name))


def settings(name: str = "sd", **more: Any) -> dict[str, Any]:
    given = {key: value for key, value in short(name).items() if key != "prompt"}
    return {**given, **more}


def word_loss(seen: Any) -> Tensor:
    """Largest attention to one token, over heads and positions; less is better."""
    return torch.stack([pattern[..., 3].amax() for pattern, _ in seen]).mean()


def update_of(name: str = "sd", **more: Any) -> LatentUpdate:
    given: dict[str, Any] = {"rule": descend(step_size=5.0), **more}
    return LatentUpdate(model(name).text_pattern_sites(), word_loss, **given)


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", [True, False])
def test_the_gradient_is_that_of_finite_differences(checkpoint: bool) -> None:
    pipe = fresh_pipe("sd").to(torch.float64)
    doubled = HookedDiffusion(pipe)
    latents = settings()["latents"].double()
    run = Run(PROMPT, **{**settings(), "latents": None})
    gradient = PatternGradient(
        doubled, run, doubled.text_pattern_sites(), word_loss, checkpoint=checkpoint
    )
    found = gradient(latents, 1)
    assert found.gradient.dtype == torch.float64
    draw = torch.Generator().manual_seed(0)
    for _ in range(3):
        along = torch.randn(latents.shape, generator=draw, dtype=torch.float64)
        there, back = (gradient(latents + sign * 1e-5 * along, 1).loss for sign in (1, -1))
        expected = float((found.gradient * along).sum())
        assert (there - back) / 2e-5 == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_rule_that_changes_nothing_changes_no_bit(name: str) -> None:
    """Though the denoiser was evaluated, with gradients, between all steps."""

    def look(latents: Tensor, _step: int, evaluate: Any) -> Tensor:
        evaluate(latents)
        return latents

    weights = list(model(name).denoiser.parameters())
    for weight in weights:
        weight.requires_grad_(True)  # the pipeline is shared, and another test may have frozen it
    weights[0].requires_grad_(False)
    plain = latents_of(model(name)(PROMPT, **settings(name)))
    before = traces(shared_pipe(name))  # after a run: transformers' text encoders keep hooks
    update = update_of(name, rule=look)
    out = run_with_latent_update(model(name), PROMPT, update, **settings(name))
    assert torch.equal(latents_of(out), plain)
    assert [step for step, _ in update.evaluations] == list(range(out.made_by.steps))
    assert traces(shared_pipe(name)) == before
    assert [weight.requires_grad for weight in weights] == [False] + [True] * (len(weights) - 1)
    assert not model(name).denoiser.is_gradient_checkpointing


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_going_down_the_gradient_lowers_the_loss(name: str) -> None:
    update = update_of(name, rule=descend(step_size=0.5, steps=[0]))
    run_with_latent_update(model(name), PROMPT, update, **settings(name))
    ((_, first),) = update.evaluations
    run = Run(PROMPT, **settings(name))
    _, cache = model(name).run_with_cache(run, names_filter="hook_sample", show_progress=False)
    latents = cache.at(step=0)["hook_sample"]
    gradient = PatternGradient(model(name), run, update.sites, word_loss)
    found = gradient(latents, 0)
    assert found.loss == first
    assert gradient(latents - 0.5 * found.gradient, 0).loss < first


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_checkpointed_gradients_are_the_same(name: str) -> None:
    run = Run(PROMPT, **settings(name))
    sites = model(name).text_pattern_sites()
    one, other = (
        PatternGradient(model(name), run, sites, word_loss, checkpoint=checkpoint)(
            settings(name)["latents"], 1
        )
        for checkpoint in (True, False)
    )
    assert one.loss == other.loss
    torch.testing.assert_close(one.gradient, other.gradient)


def test_latents_are_updated_in_inference_mode_as_without() -> None:
    def run() -> Tensor:
        update = update_of(rule=descend(step_size=1.0))
        return latents_of(run_with_latent_update(model(), PROMPT, update, **settings()))

    with torch.inference_mode():
        found = run()
    assert torch.equal(found, run())


def test_active_hooks_are_paused_and_come_back() -> None:
    """Hooks of the caller see the run's own evaluations and no others."""
    seen: list[tuple[int, int]] = []

    def count(latents: Tensor, hook: Any) -> None:
        seen.append((hook.step, len(latents)))

    update = update_of(rule=descend(step_size=0.0))
    with model_with_hook("hook_latents", count) as hooked:
        out = run_with_latent_update(hooked, PROMPT, update, **settings())
    assert seen == [(step, 1) for step in range(out.made_by.steps)]
    assert torch.equal(latents_of(out), latents_of(model()(PROMPT, **settings())))


def model_with_hook(name: str, fn: Any) -> Any:
    return model().hooks([(Site(name, branch="cond"), fn)])


def test_the_callers_callback_and_latents_come_first() -> None:
    def halved(_pipe: Any, _step: int, _time: Any, tensors: dict) -> dict:
        return {"latents": tensors["latents"] / 2}

    update = update_of(rule=descend(step_size=0.0))
    given = settings(callback_on_step_end=halved)
    out = run_with_latent_update(model(), PROMPT, update, **given)
    assert torch.equal(latents_of(out), latents_of(model()(PROMPT, **given)))


def test_what_cannot_be_updated_says_why() -> None:
    before = traces(shared_pipe("sd"))
    with pytest.raises(RunError, match=r"shape \(1, 4, 16\) of those of shape \(1, 4, 16, 16\)"):
        run_with_latent_update(
            model(), PROMPT, update_of(rule=lambda latents, *_: latents[..., 0]), **settings()
        )

    with pytest.raises(RunError, match="of shape int of those of shape"):
        run_with_latent_update(model(), PROMPT, update_of(rule=lambda *_: 1), **settings())
    losses: list[tuple[Any, str]] = [
        (lambda _: 1, "gave a int; "),
        (lambda _: torch.zeros(2), r"shape \(2,\)"),
    ]
    for wrong, what in losses:
        sites = model().text_pattern_sites()
        update = LatentUpdate(sites, wrong, descend(step_size=1.0))
        with pytest.raises(RunError, match=f"the loss .* {what}.* gives a scalar tensor"):
            run_with_latent_update(model(), PROMPT, update, **settings())
    with pytest.raises(RunError, match="sites= is empty"):
        PatternGradient(model(), Run(PROMPT), [], word_loss)
    with pytest.raises(SiteError, match="steps=-1: steps count from 0"):
        descend(step_size=1.0, steps=-1)
    with pytest.raises(ArgumentError, match=r"^LatentUpdate\(sites=…\) .* For a single one give"):
        LatentUpdate("hook_sample", word_loss, descend(step_size=1.0))

    def fails(*_: Any) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_with_latent_update(model(), PROMPT, update_of(rule=fails), **settings())
    bare = HookedDiffusion(shared_pipe("sd").unet)
    with pytest.raises(RunError, match="a bare denoiser has no loop"):
        run_with_latent_update(bare, PROMPT, update_of())
    assert traces(shared_pipe("sd")) == before
