"""Gradients with respect to latents, embeddings and activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lens import HookContext, HookedDiffusion, Site
from diffusion_lens.errors import EngineError, HookNeverFiredError
from tests.pipelines import (
    FAMILIES,
    branches_of,
    evaluation_of,
    fresh_pipe,
    golden,
    kinds_of,
    shared_pipe,
    short,
)

PATTERN = "blocks.1.attn.hook_pattern"


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(family: str) -> Iterator[HookedDiffusion]:
    pipe = shared_pipe(family)
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    weights = [weight for part in parts for weight in part.parameters()]
    before = [weight.requires_grad for weight in weights]
    for weight in weights:
        weight.requires_grad_(False)
    yield HookedDiffusion(pipe)
    for weight, was in zip(weights, before, strict=True):
        weight.requires_grad_(was)


def settings_of(family: str, **more: Any) -> dict[str, Any]:
    found = short(family, **more)
    return {key: value for key, value in found.items() if key not in ("latents", "output_type")}


def latents_for(family: str) -> Tensor:
    return golden(family).inputs["latents"].clone()


def direction_like(tensor: Tensor) -> Tensor:
    random = torch.Generator().manual_seed(11)
    return torch.randn(tensor.shape, generator=random).to(tensor) * tensor.detach().abs().mean()


def slope(loss: Callable[[float], Tensor], *, size: float = 1e-2) -> Tensor:
    """The derivative at 0 by central differences of fourth order."""
    near, far = (loss(width) - loss(-width) for width in (size, 2 * size))
    return (8 * near - far) / (12 * size)


def test_denoise_is_what_the_pipeline_evaluates(family: str, model: HookedDiffusion) -> None:
    settings = short(family)
    names = ("hook_latents", "hook_noise_pred", "hook_guided_pred", "hook_pred_x0")
    seen: dict[int, Tensor] = {}

    def keep(_pipe: Any, step: int, _time: Any, tensors: dict) -> dict:
        seen[step + 1] = tensors["latents"].clone()
        return {}

    _, cache = model.run_with_cache(
        names_filter=names,
        branch="all",
        show_progress=False,
        callback_on_step_end=keep,
        **settings,
    )
    given = seen[1]
    pred = model.denoise(given, step=1, **settings_of(family))
    assert pred.step == 1 and pred.timestep == cache.timesteps[1]
    for branch in branches_of(family):
        assert torch.equal(pred.branch(branch), cache.branch(branch)["hook_noise_pred"][1])
    assert torch.equal(pred.guided, cache["hook_guided_pred"][1])
    torch.testing.assert_close(pred.pred_x0, cache["hook_pred_x0"][1], atol=1e-4, rtol=1e-4)
    assert not pred.guided.requires_grad


@pytest.mark.slow
@pytest.mark.parametrize("names", [[], ["**"], ["blocks.*.attn.hook_pattern"]], ids=str)
def test_latents_get_the_gradient_that_finite_differences_give(
    family: str, model: HookedDiffusion, names: list[str]
) -> None:
    latents = latents_for(family).requires_grad_()
    settings = settings_of(family)
    with model.hooks([(name, lambda *_: None) for name in names]):
        pred = model.denoise(latents, step=0, **settings)
        (gradient,) = torch.autograd.grad(pred.guided.square().mean(), latents)
    direction = direction_like(latents)

    def loss(size: float) -> Tensor:
        moved = latents.detach() + size * direction
        return model.denoise(moved, step=0, **settings).guided.double().square().mean()

    found = (gradient * direction).sum().double()
    torch.testing.assert_close(found, slope(loss), rtol=1e-2, atol=2e-4)


@pytest.mark.slow
def test_reads_with_gradients_leave_the_bits(family: str, model: HookedDiffusion) -> None:
    latents, settings = latents_for(family).requires_grad_(), settings_of(family)
    plain = model.denoise(latents, step=0, **settings).guided
    with model.hooks([("**", lambda *_: None)]):
        hooked = model.denoise(latents, step=0, **settings).guided
    with model.caching("**", branch="all"):
        cached = model.denoise(latents, step=0, **settings).guided
    for other in (hooked, cached):
        assert torch.equal(other, plain) and other.requires_grad
    for name in kinds_of(model):
        if name.startswith("blocks"):
            with model.hooks([(name, lambda *_: None)]):
                assert torch.equal(model.denoise(latents, step=0, **settings).guided, plain), name


@pytest.mark.slow
def test_gradients_of_cached_activations_are_those_of_edits(
    family: str, model: HookedDiffusion
) -> None:
    names = [
        "hook_latents",
        "hook_text_emb",
        "blocks.1.img.hook_resid_pre",
        "blocks.1.img.hook_resid_mid",
        "blocks.1.img.hook_mlp_update",
        "blocks.1.img.hook_attn_out",
        "blocks.1.attn.img.hook_q",
        "blocks.1.attn.img.hook_v",
        "blocks.1.attn.img.hook_z",
        "blocks.1.attn.img.hook_result",
        "blocks.1.attn.hook_attn_scores",
        PATTERN,
    ]
    latents, settings = latents_for(family).requires_grad_(), settings_of(family)
    with model.caching(names) as cache:
        loss = model.denoise(latents, step=0, **settings).guided.square().mean()
    at = cache.at(step=0)
    # Latents and prompts enter without a gradient path of their own only where nothing needs one.
    tensors = {name: at[name] for name in names if at[name].requires_grad}
    assert set(names) - set(tensors) <= {"hook_text_emb"}
    gradients = torch.autograd.grad(loss, list(tensors.values()))
    for (name, value), gradient in zip(tensors.items(), gradients, strict=True):
        direction = direction_like(value)

        def nudged(size: float, name: str = name, by: Tensor = direction) -> Tensor:
            site = Site(name, branch="cond")
            with model.hooks([(site, lambda activation, _: activation + size * by)]):
                guided = model.denoise(latents.detach(), step=0, **settings).guided
            return guided.double().square().mean()

        found = (gradient * direction).sum().double()
        torch.testing.assert_close(found, slope(nudged), rtol=2e-2, atol=3e-4)


def test_backward_hooks_see_the_gradients_of_the_cached_activations(
    family: str, model: HookedDiffusion
) -> None:
    names = ["blocks.1.img.hook_resid_mid", "blocks.1.attn.img.hook_z", PATTERN]
    latents, settings = latents_for(family).requires_grad_(), settings_of(family)
    seen: dict[str, Tensor] = {}

    def keep(gradient: Tensor, hook: HookContext) -> None:
        seen[hook.name] = gradient.clone()

    hooks: Any = [(Site(name, branch="cond"), keep) for name in names]
    with model.caching(names) as cache, model.hooks(bwd_hooks=hooks):
        loss = model.denoise(latents, step=0, **settings).guided.square().mean()
        tensors = [cache.at(step=0)[name] for name in names]
        expected = torch.autograd.grad(loss, tensors, retain_graph=True)
        seen.clear()
        loss.backward()
    for name, gradient in zip(names, expected, strict=True):
        torch.testing.assert_close(seen[name], gradient, msg=name)


def test_a_backward_hook_replaces_the_gradient(model: HookedDiffusion, family: str) -> None:
    latents, settings = latents_for(family).requires_grad_(), settings_of(family)
    with model.hooks(bwd_hooks=[("hook_noise_pred", lambda gradient, _: gradient * 0)]):
        model.denoise(latents, step=0, **settings).guided.square().mean().backward()
    assert latents.grad is not None and latents.grad.abs().max() == 0


def test_embeddings_get_gradients(family: str, model: HookedDiffusion) -> None:
    pipe, settings = shared_pipe(family), settings_of(family, guided=False)
    prompt = settings.pop("prompt")
    more = {"prompt_2": None} if family != "sd" else {}
    if family in ("sd3", "sd35"):
        more["prompt_3"] = None
    limit = {key: settings[key] for key in ("max_sequence_length",) if key in settings}
    with torch.no_grad():
        if family == "flux":
            encoded = pipe.encode_prompt(prompt=prompt, **more, **limit)
        else:
            encoded = pipe.encode_prompt(
                prompt=prompt,
                device="cpu",
                num_images_per_prompt=1,
                do_classifier_free_guidance=False,
                **more,
                **limit,
            )
    embeds = encoded[0].clone().requires_grad_()
    pooled = {
        "flux": {"pooled_prompt_embeds": encoded[1]},
        "sd": {},
    }.get(family, {"pooled_prompt_embeds": encoded[2] if len(encoded) > 2 else None})
    settings["guidance_scale"] = 1.0 if family != "flux" else 3.5
    pred = model.denoise(latents_for(family), step=0, prompt_embeds=embeds, **pooled, **settings)
    (gradient,) = torch.autograd.grad(pred.guided.square().mean(), embeds)
    assert gradient.abs().max() > 0 and gradient.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("what", ["pattern", "scores"])
def test_the_gradient_through_part_of_a_pattern_is_that_through_all_of_it(
    family: str, what: str
) -> None:
    pipe = fresh_pipe(family)
    denoiser = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    denoiser.double().requires_grad_(False)
    model = HookedDiffusion(denoiser)
    given: dict[str, Any] = {
        key: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for key, value in evaluation_of(family).items()
    }
    if given.get("added_cond_kwargs"):
        given["added_cond_kwargs"] = {
            key: value.double() for key, value in given["added_cond_kwargs"].items()
        }
    latents = given[model.spec.latents].requires_grad_()
    name = PATTERN if what == "pattern" else PATTERN.replace("pattern", "attn_scores")
    gradients = []
    for site in (
        Site(name, heads=[1], query=slice(2, 9), key=[0, 5, 3], branch="cond"),
        Site(name, branch="cond"),
    ):
        with model.caching(site, branches=branches_of(family)) as cache:
            model.denoiser(**given)
        part = cache.at(step=0)[name]
        if part.shape[1] > 1:
            part = part[:, 1:2, 2:9][..., [0, 5, 3]]
        weight = torch.randn(part.shape, generator=torch.Generator().manual_seed(0)).double()
        gradients.append(torch.autograd.grad((part * weight).sum(), latents)[0])
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-10, rtol=0)
    assert gradients[0].abs().max() > 1e-6


@pytest.mark.slow
def test_gradient_checkpointing_changes_no_gradient_and_doubles_no_count(family: str) -> None:
    pipe = fresh_pipe(family)
    denoiser = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    model, found = HookedDiffusion(denoiser), []
    names = [PATTERN, "blocks.1.attn.img.hook_z", "blocks.1.img.hook_resid_mid"]
    names += ["blocks.0.img.hook_mlp_update", "blocks.1.attn.img.hook_q"]
    for on in (False, True):
        denoiser.train(on)
        (
            denoiser.enable_gradient_checkpointing
            if on
            else denoiser.disable_gradient_checkpointing
        )()
        denoiser.zero_grad()
        calls: list[str] = []

        def halve(activation: Tensor, hook: HookContext, calls: list[str] = calls) -> Tensor:
            calls.append(hook.name)
            return activation * 0.5

        branches = branches_of(family)
        with (
            model.caching(names, branches=branches) as cache,
            model.hooks([(Site(name, branch="cond"), halve) for name in names]),
        ):
            out = model.denoiser(**evaluation_of(family))[0]
            forward = len(calls)
            out.square().mean().backward()
        gradient = torch.cat(
            [weight.grad.flatten() for weight in denoiser.parameters() if weight.grad is not None]
        )
        found.append((out.detach(), gradient, forward, len(cache.keys())))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-6, rtol=1e-4)
    assert found[0][2:] == found[1][2:] == (len(names), len(names))


def test_checkpointing_over_several_evaluations_is_refused() -> None:
    denoiser = fresh_pipe("sd3").transformer
    denoiser.train()
    denoiser.enable_gradient_checkpointing()
    model = HookedDiffusion(denoiser)
    with model.hooks([(PATTERN, lambda p, _: p * 0.5)], branches=branches_of("sd3")):
        first = model.denoiser(**evaluation_of("sd3"))[0]
        model.denoiser(**evaluation_of("sd3"))
        with pytest.raises(EngineError, match="gradient checkpointing recomputes activations of"):
            first.sum().backward()


def test_a_backward_hook_that_no_gradient_reaches_is_refused(
    family: str, model: HookedDiffusion
) -> None:
    with pytest.raises(HookNeverFiredError, match="generation runs without gradients"):
        model.run_with_hooks(bwd_hooks=[(PATTERN, lambda *_: None)], **short(family))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd", "sd3", "flux"], indirect=True)
def test_an_activation_of_frozen_weights_can_be_differentiated(
    family: str, model: HookedDiffusion
) -> None:
    latents, settings = latents_for(family), settings_of(family)
    plain = model.denoise(latents, step=0, **settings).guided
    cross = "cross_attn" if family == "sd" else "attn"
    for name in (
        PATTERN,
        f"blocks.1.{cross}.hook_attn_scores",
        "blocks.1.attn.img.hook_q",
        f"blocks.1.{cross}.txt.hook_v",
        "blocks.1.attn.img.hook_z",
        "blocks.1.attn.img.hook_result",
        "blocks.1.img.hook_resid_mid",
        "blocks.1.img.hook_attn_out",
        "blocks.1.img.mlp.hook_post",
        "hook_latents",
    ):
        found: list[Tensor] = []

        def ask(activation: Tensor, hook: HookContext, found: list[Tensor] = found) -> Tensor:
            found.append(activation.requires_grad_())
            return activation

        with model.hooks([(Site(name, branch="cond"), ask)]):
            guided = model.denoise(latents, step=0, grad=True, **settings).guided
        assert guided.requires_grad and len(found) == 1, name
        (gradient,) = torch.autograd.grad(guided.square().mean(), found)
        assert gradient.isfinite().all() and gradient.abs().max() > 0, name
        torch.testing.assert_close(guided.detach(), plain, atol=1e-4, rtol=1e-4)
        with model.hooks(
            [(Site(name, branch="cond"), lambda value, _hook: value.requires_grad_())]
        ):
            assert model.denoise(latents, step=0, grad=True, **settings).guided.requires_grad
    with model.hooks([(PATTERN, lambda value, _hook: value.requires_grad_())]):
        assert model.denoise(latents, step=0, grad=True, **settings).guided.requires_grad
