"""Activation patching: its exact identities on every family, its reference, and its modes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lens import HookedDiffusion, Run, Site
from diffusion_lens.analyses.patching import (
    Outcome,
    PatchingResult,
    WordNoise,
    activation_patching,
    latent_recovery,
    patch_heads,
)
from diffusion_lens.interventions import replace_with
from diffusion_lens.metrics.recovery import recovery
from tests.pipelines import fresh_pipe, shared_pipe, short, traces

FAMILIES = ("sd", "sd3", "flux")
CLEAN, CORRUPTED = "a red cat on a table", "a blue dog on a table"
ALL_STREAMS = {
    "sd": ["mid.hook_h", "skips.*.hook_skip", "blocks.[up].cross_attn.hook_context"],
    "sd3": ["blocks.0.*.hook_resid_post", "hook_timestep_emb"],
    "flux": ["blocks.1.*.hook_resid_post", "hook_timestep_emb"],
}
"""Sites that cut every way from the prompt to the output: pooled text comes by the timestep."""


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(family: str) -> HookedDiffusion:
    return HookedDiffusion(shared_pipe(family))


def settings_of(family: str, **more: Any) -> dict[str, Any]:
    given = short(family, **more)
    return {
        name: one for name, one in given.items() if name not in ("latents", "prompt", "output_type")
    }


def patched(
    model: HookedDiffusion, family: str, clean: Any = CLEAN, corrupted: Any = CORRUPTED, **more: Any
) -> PatchingResult:
    given = {"seeds": (3, 4), "show_progress": False, **settings_of(family), **more}
    return activation_patching(model, clean, corrupted, **given)


class Seen:
    """A metric that keeps what it was given."""

    def __init__(self, metric: Callable[[Outcome], Tensor] = latent_recovery) -> None:
        self.metric = metric
        self.outcomes: list[Outcome] = []

    def __call__(self, outcome: Outcome) -> Tensor:
        self.outcomes.append(outcome)
        return self.metric(outcome)


def zeros(outcome: Outcome) -> Tensor:
    return torch.zeros(len(outcome.samples))


def all_streams(model: HookedDiffusion, family: str) -> list[str]:
    up = [name for name, point in model.points.items() if point.module.startswith("up_blocks")]
    return [
        name
        for pattern in ALL_STREAMS[family]
        for name in (
            [one for one in up if one.endswith("cross_attn.hook_context")]
            if "[up]" in pattern
            else [pattern]
        )
    ]


SITES = {
    "residuals": "blocks.*.*.hook_resid_post",
    "z": "blocks.*.*.*.hook_z",
    "patterns": "blocks.*.*.hook_pattern",
    "text": "hook_text_emb",
}


class TestIdentities:
    @pytest.mark.slow
    @pytest.mark.parametrize("sites", SITES.values(), ids=SITES)
    def test_its_own_values_change_no_bit(
        self, model: HookedDiffusion, family: str, sites: str
    ) -> None:
        seen = Seen(zeros)
        rows = {"steps": [1], "batch_size": 2}  # batches of one shape: kernels choose by it
        where = [name for name in model.hook_names(sites) if not model.points[name].dead_queries]
        axes = ("point",) if sites == "hook_text_emb" else ("block",)
        result = patched(model, family, CLEAN, CLEAN, sites=where, axes=axes, metric=seen, **rows)
        assert len(seen.outcomes) > 2
        for outcome in seen.outcomes[2:]:
            assert outcome.base is not None
            assert torch.equal(outcome.value, outcome.base.value)
        assert result.effects.isnan().all()  # nothing to recover

    def test_all_streams_at_one_depth_give_the_clean_output(
        self, model: HookedDiffusion, family: str
    ) -> None:
        seen = Seen()
        result = patched(model, family, sites=all_streams(model, family), axes=(), metric=seen)
        assert result.effects.item() == pytest.approx(1.0, abs=1e-5)
        last = seen.outcomes[-1]
        assert last.source is not None and last.base is not None
        torch.testing.assert_close(last.value, last.source.value, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(last.base.value, last.source.value, rtol=1e-3, atol=1e-3)

    def test_one_way_alone_does_not(self, model: HookedDiffusion, family: str) -> None:
        one = all_streams(model, family)[0]
        result = patched(model, family, sites=one, axes=())
        assert abs(result.effects.item() - 1.0) > 1e-3

    def test_the_predictions_of_every_call_give_the_clean_image(
        self, model: HookedDiffusion, family: str
    ) -> None:
        seen = Seen()
        result = patched(
            model,
            family,
            sites="hook_noise_pred",
            axes=(),
            mode="on-trajectory",
            branch=None,
            metric=seen,
        )
        assert result.effects.item() == 1.0
        clean = model(CLEAN, seed=(3, 4), num_images_per_prompt=2, output_type="latent",
                      **settings_of(family)).latents  # fmt: skip
        assert clean is not None and torch.equal(seen.outcomes[-1].value, clean)

    def test_the_other_direction_makes_the_corrupted_output(
        self, model: HookedDiffusion, family: str
    ) -> None:
        result = patched(
            model, family, sites=all_streams(model, family), axes=(), direction="noise"
        )
        assert result.effects.item() == pytest.approx(1.0, abs=1e-5)


def one_at_a_time(
    model: HookedDiffusion, family: str, sites: Sequence[tuple[int, Site]], *, seed: int
) -> dict[tuple[int, str], float]:
    """The reference: for each patch a hooked evaluation of its own, with public names alone."""
    settings = settings_of(family)
    _, run = model.run_with_cache(CLEAN, seed=seed, show_progress=False, **settings)
    found = {}
    for step, site in sites:
        latents = run.at(step=step)["hook_sample"]
        given = {"step": step, **settings}
        with model.caching(site.with_(heads=None, branch="cond")) as cache:
            source = model.denoise(latents, prompt=CLEAN, **given).cond
        base = model.denoise(latents, prompt=CORRUPTED, **given).cond
        hook = (site.with_(branch="cond"), replace_with(cache))
        with model.hooks([hook]):
            value = model.denoise(latents, prompt=CORRUPTED, **given).cond
        found[step, str(site)] = float(recovery(value, source, base))
    return found


class TestAgainstOneRunForEachPatch:
    @pytest.mark.slow
    def test_heads(self, model: HookedDiffusion, family: str) -> None:
        names = [
            name
            for name, point in model.points.items()
            if name.endswith("img.hook_z") and not point.dead
        ]
        names = [names[1], names[-1]]
        result = patched(
            model,
            family,
            sites=names,
            axes=("step", "block", "attention", "head"),
            restart=family != "sd3",
            batch_size=8,
        )
        sites = [(step, Site(name, heads=1)) for step, name in enumerate(names)]
        expected = one_at_a_time(model, family, sites, seed=4)
        for (step, text), effect in expected.items():
            name = Site.parse(text).name
            assert isinstance(name, str)
            _, block, attention, *_ = name.split(".")
            found = result.at(step=step, block=int(block), attention=attention, head=1)
            assert found.samples[1].item() == pytest.approx(effect, abs=2e-4)
        assert result.effects.abs().nan_to_num().max() > 1e-3

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["hook_resid_mid", "hook_mlp_out", "hook_v"])
    def test_other_sites(self, model: HookedDiffusion, family: str, kind: str) -> None:
        names = [
            name
            for name, point in model.points.items()
            if name.endswith(f"img.{kind}") and not point.dead
        ]
        result = patched(model, family, sites=names[-2:], axes=("block", "point", "step"))
        name = names[-1]
        expected = one_at_a_time(model, family, [(1, Site(name))], seed=3)
        found = result.at(block=int(name.split(".")[1]), point=name.split(".", 2)[2], step=1)
        assert found.samples[0].item() == pytest.approx(expected[1, name], abs=2e-4)

    def test_whole_runs(self, model: HookedDiffusion, family: str) -> None:
        settings = settings_of(family)
        name = "blocks.0.img.hook_resid_post"
        result = patched(model, family, sites=name, axes=(), mode="on-trajectory", batch_size=3)
        given = {"seed": 4, "output_type": "latent", **settings}
        clean, cache = model.run_with_cache(CLEAN, names_filter=name, show_progress=False, **given)
        base = model(CORRUPTED, **given).latents
        site = Site(name, branch="cond")
        out = model.run_with_hooks(CORRUPTED, fwd_hooks=[(site, replace_with(cache))], **given)
        assert clean.latents is not None and base is not None and out.latents is not None
        expected = float(recovery(out.latents, clean.latents, base))
        assert result.samples[1].item() == pytest.approx(expected, abs=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["PNDMScheduler", "EulerAncestralDiscreteScheduler"])
def test_runs_branch_off_where_they_are_first_patched(scheduler: str) -> None:
    import diffusers

    pipe = fresh_pipe("sd")
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    model = HookedDiffusion(pipe)
    settings = {**settings_of("sd"), "num_inference_steps": 3}
    given = {"sites": "blocks.2.img.hook_resid_post", "axes": ("step",), "mode": "window"}
    results = [
        patched(model, "sd", **given, window=2, restart=restart, **settings)
        for restart in (True, False)
    ]
    torch.testing.assert_close(results[0].samples, results[1].samples, rtol=1e-4, atol=1e-5)
    assert (results[0].effects.abs() > 1e-4).any()
    assert results[0].labels["step"] == tuple(range(len(results[0].effects)))


def test_skipped_steps_are_not_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    model = HookedDiffusion(shared_pipe("sd"))
    kind = type(model.denoiser)
    count, forward = [0], kind.forward

    @functools.wraps(forward)
    def counted(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        return forward(*args, **kwargs)

    monkeypatch.setattr(kind, "forward", counted)
    settings = {**settings_of("sd"), "num_inference_steps": 3}
    given = {"sites": "blocks.0.img.hook_resid_post", "axes": ("step",), "mode": "window"}
    result = patched(model, "sd", **given, **settings)
    steps = len(result.effects)
    assert count[0] == steps + steps + sum(range(steps + 1))


class TestInputs:
    def test_dead_points_are_left_out_and_said(self) -> None:
        model = HookedDiffusion(shared_pipe("flux"))
        last = model.n_blocks - 1
        result = patched(
            model, "flux", sites="blocks.*.*.hook_resid_post", axes=("block", "stream")
        )
        assert list(result.left_out) == [f"blocks.{last}.txt.hook_resid_post"]
        assert "throws away" in result.left_out[f"blocks.{last}.txt.hook_resid_post"]
        assert result.at(block=last, stream="txt").effects.isnan()
        assert result.at(block=last, stream="img").effects > 0.5  # pooled text comes on by itself

    @pytest.mark.slow
    def test_noise_on_words_is_undone_by_the_text_embedding(
        self, model: HookedDiffusion, family: str
    ) -> None:
        noise = WordNoise("cat", seed=5)
        sites = ["hook_text_emb"] + [name for name in ["hook_timestep_emb"] if family != "sd"]
        result = patched(model, family, CLEAN, noise, sites=sites, axes=())
        assert result.effects.item() == pytest.approx(1.0, abs=1e-5)
        site = {"sites": "blocks.1.img.hook_resid_post"}
        again, other = (patched(model, family, CLEAN, WordNoise("cat", seed=seed), **site)
                        for seed in (5, 6))  # fmt: skip
        assert not torch.equal(again.effects, other.effects)

    def test_noise_leaves_the_negative_prompt_alone(self) -> None:
        model = HookedDiffusion(shared_pipe("sd"))
        given = {**settings_of("sd"), "names_filter": "hook_text_emb", "show_progress": False}
        _, plain = model.run_with_cache(CLEAN, branch="all", **given)
        with WordNoise("cat").applied(model, CLEAN):
            _, noisy = model.run_with_cache(CLEAN, branch="all", **given)
        assert torch.equal(plain.uncond["hook_text_emb"], noisy.uncond["hook_text_emb"])
        changed = (plain.cond["hook_text_emb"] != noisy.cond["hook_text_emb"]).any(-1)[0, 0]
        first = model.words(CLEAN, "cat")[0]
        assert not changed[:first].any() and changed[first]

    @pytest.mark.slow
    def test_given_latents_and_embeddings_are_samples(self) -> None:
        model = HookedDiffusion(shared_pipe("sd"))
        settings = settings_of("sd")
        _, cache = model.run_with_cache(
            CLEAN, seed=(3, 4), num_images_per_prompt=2, show_progress=False, **settings
        )
        latents = cache.at(step=0)["hook_sample"]
        given = {"sites": "blocks.1.img.hook_resid_post", "show_progress": False, **settings}
        by_seed = activation_patching(model, CLEAN, CORRUPTED, seeds=(3, 4), **given)
        by_latents = activation_patching(model, Run(CLEAN, latents=latents), CORRUPTED, **given)
        torch.testing.assert_close(by_latents.samples, by_seed.samples)
        embeddings = model.pipe.encode_prompt(CORRUPTED, "cpu", 1, False)[0]  # type: ignore[union-attr]
        by_embeddings = activation_patching(
            model, CLEAN, Run(prompt_embeds=embeddings), seeds=(3, 4), **given
        )
        torch.testing.assert_close(by_embeddings.samples, by_seed.samples)

    @pytest.mark.slow
    def test_nothing_is_left_on_the_model(self, model: HookedDiffusion, family: str) -> None:
        before = traces(model.pipe)

        def fails(outcome: Outcome) -> Tensor:
            raise RuntimeError("on purpose")

        class FailsLater(Seen):
            def __call__(self, outcome: Outcome) -> Tensor:
                return fails(outcome) if len(self.outcomes) >= 2 else super().__call__(outcome)

        for mode in ("teacher-forced", "on-trajectory"):
            with pytest.raises(RuntimeError, match="on purpose"):
                patched(
                    model,
                    family,
                    sites="blocks.*.img.hook_resid_post",
                    mode=mode,
                    metric=FailsLater(),
                    steps=[0],
                )
        assert traces(model.pipe) == before
        named = [
            name for name, module in model.denoiser.named_modules() if "forward" in vars(module)
        ]
        assert not named


def test_a_common_sweep_is_the_general_one() -> None:
    model = HookedDiffusion(shared_pipe("sd3"))
    given = {"seeds": (3,), "show_progress": False, **settings_of("sd3")}
    heads = patch_heads(model, CLEAN, CORRUPTED, **given)
    assert heads.axes == ("block", "attention", "head")
    again = patched(
        model,
        "sd3",
        sites="blocks.*.*.*.hook_z",
        axes=("block", "attention", "head"),
        seeds=(3,),
    )
    assert torch.equal(heads.effects.nan_to_num(), again.effects.nan_to_num())
