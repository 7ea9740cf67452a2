"""Ablation sweeps against single runs with the hooks of `interventions`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from diffusion_lens import HookedDiffusion, Run, Site
from diffusion_lens.analyses import ablation_sweep
from diffusion_lens.analyses.patching import AblationResult, latent_recovery
from diffusion_lens.analyses.patching.donors import weighted
from diffusion_lens.errors import PatchingError
from diffusion_lens.interventions import ablate_heads, replace_with
from tests.pipelines import shared_pipe, short

PROMPT, OTHERS = "a red cat on a table", ("a blue dog on a chair", "two green birds in the sky")
SEEDS = (3, 8, 11)
FAMILIES = ("sd", "flux")
HEADS = {"sd": "blocks.1.cross_attn.img.hook_z", "flux": "blocks.1.attn.img.hook_z"}


def settings_of(family: str, steps: int = 2) -> dict[str, Any]:
    fixed = ("latents", "prompt", "output_type")
    return {name: one for name, one in short(family, steps=steps).items() if name not in fixed}


def swept(family: str, *, prompt: Any = PROMPT, **more: Any) -> AblationResult:
    model = HookedDiffusion(shared_pipe(family))
    given = {"sites": HEADS[family], "axes": ("head",), "seeds": SEEDS, "show_progress": False}
    return ablation_sweep(model, prompt, **{**given, **settings_of(family), **more})


def drawn(family: str, seed: int, hooks: Any = (), prompt: str = PROMPT, steps: int = 2) -> Tensor:
    """Final latents of one sample by itself."""
    model = HookedDiffusion(shared_pipe(family))
    given = {"seed": seed, "output_type": "latent", **settings_of(family, steps)}
    latents = model.run_with_hooks(prompt, fwd_hooks=list(hooks), **given).latents
    assert latents is not None
    return latents


def distances(family: str, hooks_of: Any, *, steps: int = 2) -> Tensor:
    """How far each sample ends from where it ends without the hooks that `hooks_of` gives."""
    ends = [
        (drawn(family, seed, hooks_of(number), steps=steps), drawn(family, seed, steps=steps))
        for number, seed in enumerate(SEEDS)
    ]
    return torch.stack([(one - plain).square().mean().sqrt() for one, plain in ends])


def cached(family: str, prompts: Any, seeds: Any, name: str, **more: Any) -> Any:
    model = HookedDiffusion(shared_pipe(family))
    run = Run(list(prompts), seed=tuple(seeds), output_type="latent", **settings_of(family))
    return model.run_with_cache(run, names_filter=name, show_progress=False, **more)[1]


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Equal but for rounding, which depends on what else is in a batch."""
    torch.testing.assert_close(found.float(), expected.float(), rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_zeros_are_those_of_single_runs(family: str) -> None:
    found = swept(family)
    name = HEADS[family]
    assert len(found.effects) == HookedDiffusion(shared_pipe(family)).points[name].heads
    for head in range(2):
        site = Site(name, heads=[head], branch="cond")
        expected = distances(family, lambda _, site=site: [(site, ablate_heads("zero"))])
        assert expected.min() > 1e-4
        assert_close(found.samples[head], expected)
        assert_close(found.effects[head], expected.mean())
    assert torch.equal(found.base, torch.zeros_like(found.base))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_means_are_over_references_and_tokens(family: str) -> None:
    others = (*OTHERS, "a box")
    found = swept(family, value="mean", others=others)
    cache = cached(family, others, SEEDS, HEADS[family])
    site = Site(HEADS[family], heads=[1], branch="cond")
    expected = distances(family, lambda _: [(site, Mean(cache))])
    assert expected.min() > 1e-5
    assert_close(found.samples[1], expected)
    turned = swept(family, value="mean", others=others[::-1])
    assert not torch.allclose(turned.samples, found.samples)  # each prompt has another noise
    more = swept(family, value="mean", others=(*others, "a tree"))
    assert not torch.allclose(more.samples, found.samples)


SPACE = {
    ("sd", "hook_latents"): (0, 2, 3),
    ("flux", "hook_latents"): (0, 1),
    ("sd", "mid.hook_h"): (0, 2, 3),
    ("sd", "blocks.1.cross_attn.hook_pattern"): (0, 2),
}


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), SPACE)
def test_means_are_over_samples_and_space_in_every_family(family: str, name: str) -> None:
    found = swept(family, sites=name, axes=("point",), value="mean")
    cache = cached(family, [PROMPT] * len(SEEDS), SEEDS, name)
    site, over = Site(name, branch="cond"), SPACE[family, name]

    def flat(activation: Tensor, hook: Any) -> Tensor:
        mean = cache.at(step=hook.step)[name].mean(over, keepdim=True)
        return mean.expand_as(activation)

    expected = distances(family, lambda _: [(site, flat)])
    assert expected.min() > 1e-5
    assert_close(found.samples[0], expected)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("value", ["mean", "resample"])
def test_reference_runs_are_batches_of_batch_size(
    family: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = (*OTHERS, "a box", "a tree", "a red bird")[: 5 if value == "mean" else 3]
    whole = swept(family, value=value, others=others)
    rows: list[int] = []
    record = HookedDiffusion.run_with_cache

    def counted(model: HookedDiffusion, run: Any, **more: Any) -> Any:
        rows.append(run.samples)
        return record(model, run, **more)

    monkeypatch.setattr(HookedDiffusion, "run_with_cache", counted)
    apart = swept(family, value=value, others=others, batch_size=2)
    assert rows == ([2, 2, 1] if value == "mean" else [2, 1])
    assert_close(apart.samples, whole.samples)
    rows.clear()
    apart = swept(family, value=value, batch_size=1)
    assert rows == [1, 1, 1]
    assert_close(apart.samples, swept(family, value=value).samples)


def test_means_of_unequal_batches_count_each_run_alike() -> None:
    rows = torch.randn(5, 4, dtype=torch.float64)
    for kind in (torch.float64, torch.float32, torch.bfloat16):
        means = [part.to(kind).mean(0, keepdim=True) for part in rows.split(2)]
        found = weighted(means, [2, 2, 1])
        assert found.dtype == kind
        error = (found[0].double() - rows.mean(0)).abs().max()
        assert error < 10 * torch.finfo(kind).eps


class Bar:
    """In place of a progress bar."""

    said: ClassVar[dict[str, Any]] = {}
    done: ClassVar[list[int]] = []

    def __init__(self, **said: Any) -> None:
        self.said.update(said)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, rows: int) -> None:
        self.done.append(rows)


def test_the_bar_counts_ablations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusion_lens.analyses.patching.sweep.tqdm", Bar)
    found = swept("sd")
    assert (Bar.said["desc"], Bar.said["unit"]) == ("ablation", " ablations")
    assert sum(Bar.done) == Bar.said["total"] == found.samples.numel()


class Mean:
    """The mean of a cache over samples and tokens, for one sample."""

    def __init__(self, cache: Any) -> None:
        self.cache = cache

    def __call__(self, activation: Tensor, hook: Any) -> Tensor:
        kept = self.cache.at(step=hook.step)[hook.name][:, :, list(hook.heads)]
        return kept.mean((0, 1)).expand_as(activation)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_resampled_values_are_those_of_the_other_prompts(family: str) -> None:
    found = swept(family, value="resample", others=OTHERS)
    site = Site(HEADS[family], heads=[0], branch="cond")
    caches = [
        cached(family, [OTHERS[number % 2]], [seed], HEADS[family])
        for number, seed in enumerate(SEEDS)
    ]
    expected = distances(family, lambda number: [(site, replace_with(caches[number]))])
    assert expected.min() > 1e-5
    assert_close(found.samples[0], expected)


@pytest.mark.slow
def test_without_other_prompts_values_are_the_next_samples() -> None:
    found = swept("sd", value="resample")
    caches = [cached("sd", [PROMPT], [seed], HEADS["sd"]) for seed in (*SEEDS[1:], SEEDS[0])]
    site = Site(HEADS["sd"], heads=[0], branch="cond")
    expected = distances("sd", lambda number: [(site, replace_with(caches[number]))])
    assert_close(found.samples[0], expected)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_steps_are_ablated_apart(family: str) -> None:
    given = {"sites": HEADS[family], **settings_of(family, 4)}
    found = swept(family, axes=("step",), steps=[1, 3], **given)
    assert found.labels["step"] == (1, 3)
    for number, step in enumerate((1, 3)):
        site = Site(HEADS[family], steps=[step], branch="cond")
        hooks = [(site, ablate_heads("zero"))]
        assert_close(found.samples[number], distances(family, lambda _, h=hooks: h, steps=4))
    whole = swept(family, axes=("step",), steps=[1, 3], restart=False, **given)
    assert_close(found.samples, whole.samples)


def test_residuals_pooled_text_and_mlps_can_be_ablated_too() -> None:
    names = ["blocks.0.img.hook_mlp_out", "blocks.1.img.hook_attn_out", "hook_text_emb"]
    found = swept("sd", sites=names, axes=("point",), value="mean", others=OTHERS[0])
    assert len(found.labels["point"]) == 3
    assert found.effects.min() > 0


@pytest.mark.slow
def test_every_branch_is_ablated_where_none_is_said() -> None:
    both = swept("sd", branch=None)
    site = Site(HEADS["sd"], heads=[0])
    assert_close(both.samples[0], distances("sd", lambda _: [(site, ablate_heads("zero"))]))
    assert not torch.allclose(both.samples, swept("sd").samples)


@pytest.mark.slow
def test_a_broken_off_sweep_goes_on(tmp_path: Path) -> None:
    whole = swept("sd", resume=tmp_path)
    again = swept("sd", resume=tmp_path)
    assert torch.equal(whole.samples, again.samples)
    with pytest.raises(PatchingError, match="value"):
        swept("sd", resume=tmp_path, value="mean")
    with pytest.raises(PatchingError, match="others"):
        swept("sd", resume=tmp_path / "one", value="mean", others=OTHERS[0])
        swept("sd", resume=tmp_path / "one", value="mean", others=OTHERS[1])


def test_results_save_plot_and_say_what_they_are(tmp_path: Path) -> None:
    found = swept("sd")
    read = AblationResult.load(found.save(tmp_path / "x"))
    assert torch.equal(read.samples, found.samples)
    assert read.made_by["run"]["prompt"] == PROMPT
    assert found.top(1)[0]["effect"] == pytest.approx(float(found.effects.max()))
    assert found.at(head=0).effects.shape == ()
    assert "\n" not in repr(found)
    assert "intact" in str(found.plot().to_dict())


@pytest.mark.slow
def test_toys_lose_the_colour_without_the_text() -> None:
    """A metric of images alone: what the program that grades toys says, intact and ablated."""
    from diffusion_lens.analyses.patching import graded

    model = HookedDiffusion.toy("shapes-unet")
    found = ablation_sweep(
        model,
        "a red circle",
        sites=["blocks.*.cross_attn.img.hook_z"],
        axes=(),
        metric=graded("a red circle", part="colour"),
        seeds=4,
        show_progress=False,
    )
    assert found.base.mean() == 1
    assert found.effects <= -0.5
    assert found.top(1)[0]["effect"] == float(found.effects)  # a fall is an effect, too


BAD = {
    "another value": ({"value": "noise"}, "value='noise'"),
    "zeros of others": ({"others": OTHERS}, "value='zero' takes nothing from others="),
    "no other sample": ({"value": "resample", "seeds": (1,)}, "give seeds=2 or more"),
    "more prompts than samples": (
        {"value": "resample", "others": ["a"] * 4},
        "has 4 prompts for 3 samples",
    ),
    "prompts that would count unequally": (
        {"value": "mean", "others": OTHERS},
        "would weigh the first prompts more; give a multiple of 2 seeds",
    ),
    "a part of the prompt besides": (
        {"value": "mean", "others": OTHERS[0], "prompt_2": "a dog", "family": "flux"},
        "the run has prompt_2= besides",
    ),
    "a metric that needs a source": ({"metric": latent_recovery}, "gives nan for every intact run"),
    "several prompts": ({"prompt": Run(("a", "b"))}, "takes a single prompt for each run"),
    "what no site selects": (
        {"sites": Site("blocks.1.img.hook_resid_post", heads=0)},
        "nothing is left to replace",
    ),
    "a window of more steps than there are": ({"axes": ("step",), "window": 9}, "window=9"),
}


@pytest.mark.parametrize(("more", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_is_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(PatchingError, match=message) as caught:
        swept(**{"family": "sd", **more})
    assert not {"patch", "patched", "pair"} & set(re.findall(r"\w+", str(caught.value)))


@pytest.mark.slow
@pytest.mark.parametrize("value", ["mean", "resample"])
def test_negative_prompts_are_those_of_the_run(value: str) -> None:
    given = {"value": value, "others": OTHERS[0]}
    found = swept("sd", **given)
    assert found.effects.min() > 0
    assert not torch.allclose(
        found.samples, swept("sd", **{**given, "negative_prompt": "box"}).samples
    )
