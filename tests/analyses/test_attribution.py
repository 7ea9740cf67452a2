"""Attribution patching: gradients against finite differences, completeness, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lens import HookContext, HookedDiffusion
from diffusion_lens.analyses.patching import (
    Outcome,
    PatchingResult,
    activation_patching,
    latent_projection,
    latent_recovery,
)
from diffusion_lens.analyses.patching.attribution_patching import attribution_patching
from diffusion_lens.errors import PatchingError
from diffusion_lens.metrics.recovery import projection
from tests.pipelines import fresh_pipe, shared_pipe, short, traces

CLEAN, CORRUPTED = "a red cat on a table", "a blue dog on a table"
SITES = {
    "sd": ("blocks.2.cross_attn.img.hook_z",),
    "sd3": ("blocks.1.attn.txt.hook_z", "blocks.0.img.hook_mlp_out"),
    "flux": ("blocks.1.attn.img.hook_z", "blocks.3.img.hook_resid_pre"),
}


def settings_of(family: str, **more: Any) -> dict[str, Any]:
    fixed = ("latents", "prompt", "output_type")
    return {name: one for name, one in short(family, **more).items() if name not in fixed}


def estimated(model: HookedDiffusion, family: str, **more: Any) -> PatchingResult:
    given = {"seeds": (3,), "steps": [1], "show_progress": False, **settings_of(family), **more}
    return attribution_patching(model, CLEAN, CORRUPTED, **given)


def in_double(family: str) -> HookedDiffusion:
    pipe = fresh_pipe(family)
    pipe.to(torch.float64)
    return HookedDiffusion(pipe)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd", "sd3", "flux"])
def test_an_estimate_is_the_slope_that_finite_differences_give(family: str) -> None:
    model, settings = in_double(family), settings_of(family)
    _, run = model.run_with_cache(CLEAN, seed=3, show_progress=False, **settings)
    latents, given = run.at(step=1)["hook_sample"], {"step": 1, **settings}
    size = 1e-2 if family == "flux" else 1e-4  # Flux's rotary embedding computes in float32
    for name in SITES[family]:
        with model.caching(name) as cache:
            source = model.denoise(latents, prompt=CLEAN, **given).cond
        with model.caching(name) as own:
            base = model.denoise(latents, prompt=CORRUPTED, **given).cond
        move = cache.at(step=1)[name] - own.at(step=1)[name]

        def moved(weight: float, name: str = name, move: Tensor = move) -> Tensor:
            def hook(value: Tensor, hook: HookContext) -> Tensor:
                return value + weight * move

            with model.hooks([(f"{name}[branch=cond]", hook)]):
                return model.denoise(latents, prompt=CORRUPTED, **given).cond

        ends = [projection(moved(weight), source, base) for weight in (size, -size)]
        slope = float((ends[0] - ends[1]) / (2 * size))
        result = estimated(model, family, sites=name, axes=("block",))
        assert result.effects.item() == pytest.approx(slope, rel=2e-3, abs=1e-6), name
        assert abs(slope) > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd", "flux"])
def test_integrated_gradients_of_the_conditions_sum_to_the_whole_effect(family: str) -> None:
    model = HookedDiffusion(shared_pipe(family))
    sites = ["hook_text_emb"] + ["hook_pooled_text_emb"] * (family == "flux")
    given = {"sites": sites, "axes": (), "metric": latent_recovery}
    found = estimated(model, family, **given, method="integrated", points=16).effects.item()
    first = estimated(model, family, **given).effects.item()
    assert found == pytest.approx(1.0, abs=0.02)
    assert abs(found - 1.0) < abs(first - 1.0)


@pytest.mark.slow
def test_where_the_rest_is_linear_the_estimate_is_exact() -> None:
    model = HookedDiffusion(shared_pipe("sd3"))
    common = {"metric": latent_projection, "sites": "hook_noise_pred", "axes": ("point", "step")}
    result = estimated(model, "sd3", **common, seeds=(3, 4), steps=None)
    torch.testing.assert_close(result.effects, torch.ones(1, 2, dtype=torch.float64))
    # SD3's last block: what follows its MLP is a norm; so parts of it are close, but not the same.
    common |= {"sites": "blocks.*.img.hook_mlp_out", "axes": ("block", "step"), "seeds": (3, 4)}
    exact = activation_patching(
        model, CLEAN, CORRUPTED, **common, show_progress=False, **settings_of("sd3")
    )
    found = estimated(model, "sd3", **common, steps=None)
    assert found.rank_correlation(exact) > 0.8
    assert not torch.allclose(found.effects, exact.effects)


def test_the_result_says_what_it_is_and_leaves_nothing() -> None:
    pipe = shared_pipe("sd3")
    pipe.encode_prompt("a cat", None, None)  # transformers hooks its encoders at their first call
    before = traces(pipe)
    result = estimated(HookedDiffusion(pipe), "sd3", sites="blocks.*.*.hook_mlp_out")
    assert result.method == "attribution (first-order)"
    assert "own formulation" in result.citation
    assert traces(pipe) == before
    assert all(weight.grad is None for weight in pipe.transformer.parameters())


def test_frozen_weights_have_the_same_gradients() -> None:
    pipe = fresh_pipe("sd3")
    sites = {"sites": "blocks.*.*.*.hook_z", "axes": ("block", "head")}
    free = estimated(HookedDiffusion(pipe), "sd3", **sites)
    pipe.transformer.requires_grad_(False)
    frozen = estimated(HookedDiffusion(pipe), "sd3", **sites)
    torch.testing.assert_close(frozen.effects, free.effects)


def test_what_has_no_gradient_is_refused() -> None:
    model = HookedDiffusion(shared_pipe("sd3"))

    def counts(outcome: Outcome) -> Tensor:
        return torch.tensor([float(value.sum() > 0) for value in outcome.value])

    with pytest.raises(PatchingError, match="has no gradient"):
        estimated(model, "sd3", sites="blocks.0.img.hook_mlp_out", metric=counts)
    with pytest.raises(PatchingError, match="methods are"):
        estimated(model, "sd3", sites="blocks.0.img.hook_mlp_out", method="second-order")
