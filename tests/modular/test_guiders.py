"""The branch of every evaluation is what the guider says, and no other."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import diffusers
import pytest
import torch
from diffusers import guiders
from diffusers.configuration_utils import register_to_config
from diffusers.hooks import LayerSkipConfig
from diffusers.hooks.smoothed_energy_guidance_utils import SmoothedEnergyGuidanceConfig
from torch import Tensor

from diffusion_lens import HookedDiffusion, Site
from diffusion_lens.engine.guiders import GUIDERS
from diffusion_lens.errors import EngineError, HookNeverFiredError
from tests.modular.pipelines import PROMPT, generator, guided, put_together, settings, shared
from tests.pipelines import latents_of, traces
from tests.tiny_videos.families import TINY_VIDEOS, fresh_video
from tests.tiny_videos.wan import wan_two

MIDDLE = "mid_block.attentions.0.transformer_blocks"
WHOLE = {"start": 0.0, "stop": 1.0}


def layers(path: str, **more: Any) -> LayerSkipConfig:
    return LayerSkipConfig(indices=[0], fqn=path, **more)


def skipping(path: str, *, scale: float = 4.0, window: Any = (0.0, 1.0), **more: Any) -> Any:
    start, stop = window
    return guiders.SkipLayerGuidance(
        guidance_scale=scale,
        skip_layer_guidance_start=start,
        skip_layer_guidance_stop=stop,
        skip_layer_config=layers(path, **more),
    )


def perturbing(path: str) -> Any:
    only = {"skip_attention": False, "skip_attention_scores": True, "skip_ff": False}
    return guiders.PerturbedAttentionGuidance(
        guidance_scale=4.0,
        perturbed_guidance_start=0.0,
        perturbed_guidance_stop=1.0,
        perturbed_guidance_config=layers(path, **only),
    )


def blurring(path: str) -> Any:
    return guiders.SmoothedEnergyGuidance(
        guidance_scale=4.0,
        seg_guidance_start=0.0,
        seg_guidance_stop=1.0,
        seg_guidance_config=SmoothedEnergyGuidanceConfig(indices=[0], fqn=path),
    )


TWO = {"pred_cond": "cond", "pred_uncond": "uncond"}

CASES: dict[str, tuple[str, Callable[[], Any], dict[str, str]]] = {
    "cfg": ("sdxl", lambda: guiders.ClassifierFreeGuidance(4.0), TWO),
    "cfg in a window": (
        "qwen_image",
        lambda: guiders.ClassifierFreeGuidance(4.0, start=0.25, stop=0.75),
        TWO,
    ),
    "cfg of no scale": ("sd3", lambda: guiders.ClassifierFreeGuidance(1.0), TWO),
    "zero star": ("wan", lambda: guiders.ClassifierFreeZeroStarGuidance(4.0), TWO),
    "projected": ("sd3", lambda: guiders.AdaptiveProjectedGuidance(4.0), TWO),
    "projected mix": ("sdxl", lambda: guiders.AdaptiveProjectedMixGuidance(4.0), TWO),
    "magnitude": ("qwen_image", lambda: guiders.MagnitudeAwareGuidance(4.0), TWO),
    "tangential": ("z_image", lambda: guiders.TangentialClassifierFreeGuidance(4.0), TWO),
    "auto": (
        "wan",
        lambda: guiders.AutoGuidance(4.0, auto_guidance_config=layers("blocks")),
        TWO,
    ),
    "skip": ("wan", lambda: skipping("blocks"), TWO | {"pred_cond_skip": "skip"}),
    "skip in a window": (
        "sdxl",
        lambda: skipping(MIDDLE, window=(0.25, 0.75)),
        TWO | {"pred_cond_skip": "skip"},
    ),
    "perturbed": (
        "sdxl",
        lambda: perturbing(MIDDLE),
        TWO | {"pred_cond_skip": "perturbed"},
    ),
    "smoothed": ("sdxl", lambda: blurring(MIDDLE), TWO | {"pred_cond_seg": "perturbed"}),
}


def with_guider(name: str, make: Callable[[], Any]) -> Any:
    pipe = shared(name)[1]
    with contextlib.redirect_stderr(io.StringIO()):
        pipe.update_components(guider=make())
    return pipe


def denoiser_of(pipe: Any) -> Any:
    return getattr(pipe, "unet", None) or pipe.transformer


@contextlib.contextmanager
def listening(pipe: Any) -> Iterator[list[tuple[str, Tensor]]]:
    """What the guider calls its batches, with what the denoiser made of each, by plain means.

    The batch that a prediction is written to says which one it is: the guider combines those.
    """
    kind, found = type(pipe.guider), []
    original = kind.__call__

    def combine(self: Any, data: list[Any]) -> Any:
        for batch in data:
            found.append((getattr(batch, self._identifier_key), batch.noise_pred.clone()))
        return original(self, data)

    kind.__call__ = combine
    try:
        yield found
    finally:
        if "__call__" in vars(kind):
            if original is vars(guiders.BaseGuidance)["__call__"]:
                del kind.__call__
            else:
                kind.__call__ = original


@pytest.mark.parametrize("case", CASES)
def test_every_evaluation_has_the_branch_that_its_guider_says(case: str) -> None:
    name, make, branches = CASES[case]
    pipe = with_guider(name, make)
    given = settings(name, steps=4)
    with listening(pipe) as told:
        pipe(prompt=PROMPT, generator=generator(), **given)
    pipe = with_guider(name, make)
    seen: list[tuple[str, Tensor]] = []
    steps: list[int] = []

    def see(activation: Tensor, hook: Any) -> None:
        seen.append((hook.branch, activation.clone()))
        steps.append(hook.step)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "SmoothedEnergyGuidance left")
        HookedDiffusion(pipe).run_with_hooks(
            PROMPT, seed=0, fwd_hooks=[("hook_noise_pred", see)], **given
        )
    assert [branch for branch, _ in seen] == [branches[prediction] for prediction, _ in told]
    for (_, ours), (_, theirs) in zip(seen, told, strict=True):
        # Z-Image turns the sign, and takes an axis of one frame off.
        whole = -ours.squeeze(2) if name == "z_image" else ours
        assert torch.equal(whole, theirs)
    assert steps == sorted(steps)
    assert set(steps) == {0, 1, 2, 3}


def test_runs_one_after_the_other_are_the_same() -> None:
    """A guider that guides no more at the last step would be given no negative prompt again."""
    name, make, _ = CASES["cfg in a window"]
    model, given = HookedDiffusion(with_guider(name, make)), settings(name, steps=4)
    first = latents_of(model(PROMPT, seed=0, **given))
    again, cache = model.run_with_cache(PROMPT, seed=0, branch="all", **given)
    assert torch.equal(latents_of(again), first)
    start = cache.at(step=1)["hook_sample"]
    found = model.denoise(start, prompt=PROMPT, step=1, **given)
    assert torch.equal(found.guided, cache.at(step=1)["hook_guided_pred"])
    assert list(found.branches) == ["cond", "uncond"]


def test_windows_are_those_of_each_step() -> None:
    pipe, seen = with_guider("qwen_image", CASES["cfg in a window"][1]), []
    model = HookedDiffusion(pipe)
    with model.hooks([("hook_noise_pred", lambda _, hook: seen.append((hook.step, hook.branch)))]):
        model(PROMPT, **settings("qwen_image", steps=4))
    guided_steps = {1, 2}
    assert seen == [
        (step, branch)
        for step in range(4)
        for branch in ("cond", "uncond")
        if branch == "cond" or step in guided_steps
    ]


def test_every_guider_of_diffusers_is_described_or_refused() -> None:
    every = {
        name
        for name in dir(guiders)
        if isinstance(getattr(guiders, name), type)
        and issubclass(getattr(guiders, name), guiders.BaseGuidance)
    }
    assert every - set(GUIDERS) == {"BaseGuidance", "LTX2Guidance"}
    for name, branches in GUIDERS.items():
        assert set(branches) == set(getattr(guiders, name)._input_predictions)


def test_an_edit_reaches_its_branch_alone() -> None:
    def plus_one(activation: Tensor, _hook: Any) -> Tensor:
        return activation + 1

    outputs: dict[str | None, list[Tensor]] = {}
    for edited in (None, "cond", "uncond", "perturbed"):
        pipe = with_guider("sdxl", CASES["perturbed"][1])
        model, found = HookedDiffusion(pipe), outputs.setdefault(edited, [])
        hooks = [(Site("mid.hook_h", branch=edited, steps=[1]), plus_one)] if edited else []
        handle = denoiser_of(pipe).register_forward_hook(lambda *a, to=found: to.append(a[2][0]))
        model.run_with_hooks(PROMPT, seed=0, fwd_hooks=hooks, **settings("sdxl", steps=2))
        handle.remove()
    order = ("cond", "uncond", "cond", "uncond", "perturbed")  # none in step 0
    for edited in ("cond", "uncond", "perturbed"):
        same = [torch.equal(a, b) for a, b in zip(outputs[None], outputs[edited], strict=True)]
        assert same == [True, True, *(branch != edited for branch in order[2:])]


def test_hooks_of_one_branch_run_beside_a_layer_left_out_in_another() -> None:
    names = [
        "blocks.0.attn.hook_pattern",
        "blocks.0.attn.img.hook_q",
        "blocks.1.img.hook_resid_pre",
    ]
    pipe = with_guider("wan", CASES["skip"][1])
    out = pipe(prompt=PROMPT, generator=generator(), **settings("wan", steps=3))
    pipe = with_guider("wan", CASES["skip"][1])
    model = HookedDiffusion(pipe)
    ours, cache = model.run_with_cache(
        PROMPT, seed=0, names_filter=names, branch="cond", **settings("wan", steps=3)
    )
    assert cache.steps == [0, 1, 2]
    for one, other in zip(ours.frames, out.get("videos"), strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


def test_the_stream_behind_a_layer_that_is_left_out_is_the_one_before_it() -> None:
    pipe = with_guider("wan", CASES["skip"][1])
    names = ["blocks.0.img.hook_resid_pre", "blocks.1.img.hook_resid_pre"]
    _, cache = HookedDiffusion(pipe).run_with_cache(
        PROMPT, seed=0, names_filter=names, branch="all", **settings("wan", steps=3)
    )
    for branch, left_out in (("cond", False), ("uncond", False), ("skip", True)):
        before, behind = (cache.entries[name, branch] for name in names)
        assert set(before) == ({1, 2} if left_out else {0, 1, 2})
        for step in before:
            assert torch.equal(before[step], behind[step]) == left_out


@pytest.mark.parametrize(
    ("case", "point"),
    [
        ("skip", "blocks.0.attn.img.hook_q"),
        ("auto", "blocks.0.img.hook_mlp_out"),
        ("perturbed", "blocks.2.attn.hook_pattern"),
    ],
)
def test_a_hook_that_a_changed_denoiser_does_not_run_is_refused(case: str, point: str) -> None:
    name, make, branches = CASES[case]
    pipe = with_guider(name, make)
    model = HookedDiffusion(pipe)
    further = list(branches.values())[-1]
    before = traces(pipe)
    with pytest.raises(
        EngineError, match=re.escape(f"{point}, which does not run in branch")
    ) as info:
        model.run_with_cache(PROMPT, names_filter=point, branch="all", **settings(name, steps=3))
    assert f"branch {further!r}" in str(info.value)
    assert type(pipe.guider).__name__ in str(info.value)
    assert traces(pipe) == before
    assert not left_by_guiders(pipe)


def left_by_guiders(pipe: Any) -> list[str]:
    registries = (vars(module).get("_diffusers_hook") for module in denoiser_of(pipe).modules())
    return [name for one in registries if one is not None for name in one.hooks]


@pytest.mark.parametrize("case", ["skip", "auto", "perturbed"])
def test_an_error_in_a_changed_evaluation_leaves_the_denoiser_as_it_was(case: str) -> None:
    name, make, branches = CASES[case]
    further = list(branches.values())[-1]

    def fail(_activation: Tensor, _hook: Any) -> None:
        raise KeyError("on purpose")

    pipe = with_guider(name, make)
    expected = latents_of(HookedDiffusion(pipe)(PROMPT, seed=0, **settings(name, steps=3)))
    pipe, before = with_guider(name, make), traces(pipe)
    model = HookedDiffusion(pipe)
    hooks = [(Site("hook_noise_pred", branch=further), fail)]
    with pytest.raises(KeyError, match="on purpose"):
        model.run_with_hooks(PROMPT, fwd_hooks=hooks, **settings(name, steps=3))
    assert traces(pipe) == before
    assert not left_by_guiders(pipe)
    pipe = with_guider(name, make)
    again = latents_of(HookedDiffusion(pipe)(PROMPT, seed=0, **settings(name, steps=3)))
    assert torch.equal(again, expected)


def test_a_skipped_block_that_swaps_image_and_text_is_refused() -> None:
    pipe = with_guider("qwen_image", lambda: skipping("transformer_blocks"))
    model = HookedDiffusion(pipe)
    with pytest.raises(EngineError, match="image and text the wrong way round"):
        model.run_with_cache(PROMPT, **settings("qwen_image", steps=3))
    assert not left_by_guiders(pipe)


def test_a_third_prediction_from_the_negative_prompt_is_refused() -> None:
    pipe = with_guider("wan", lambda: skipping("blocks", scale=1.0))
    with pytest.raises(EngineError, match="'pred_cond_skip' with other encoder_hidden_states"):
        HookedDiffusion(pipe).run_with_cache(PROMPT, **settings("wan", steps=3))


def test_a_guider_that_changes_nothing_is_told() -> None:
    pipe = with_guider("sdxl", CASES["smoothed"][1])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        _, cache = HookedDiffusion(pipe).run_with_cache(
            PROMPT,
            names_filter="mid.hook_h",
            branch="all",
            **settings("sdxl", steps=3),
        )
    (ours,) = (
        one for one in told if issubclass(one.category, UserWarning) and "left" in str(one.message)
    )
    assert str(ours.message).startswith("SmoothedEnergyGuidance left the denoiser as it is")
    cond, third = (cache.entries["mid.hook_h", branch] for branch in ("cond", "perturbed"))
    assert all(torch.equal(third[step], cond[step]) for step in third)


def test_an_unknown_guider_is_refused_by_name() -> None:
    class Homemade(guiders.BaseGuidance):
        _input_predictions: ClassVar[list[str]] = ["pred_cond"]

        @register_to_config
        def __init__(self) -> None:
            super().__init__()

        @property
        def num_conditions(self) -> int:
            return 1

    class Derived(guiders.ClassifierFreeGuidance):
        pass

    pipe = with_guider("sdxl", Homemade)
    with pytest.raises(EngineError, match="Homemade is no guider whose predictions are described"):
        HookedDiffusion(pipe).run_with_cache(PROMPT, **settings("sdxl"))
    pipe = with_guider("sdxl", lambda: Derived(4.0))
    _, cache = HookedDiffusion(pipe).run_with_cache(PROMPT, branch="all", **settings("sdxl"))
    assert {branch for _, branch in cache.entries} >= {"cond", "uncond"}


def test_an_unknown_prediction_is_refused_by_name() -> None:
    class Other(guiders.ClassifierFreeGuidance):
        def prepare_inputs(self, data: Any) -> Any:
            batches = super().prepare_inputs(data)
            for batch in batches:
                setattr(batch, self._identifier_key, "pred_other")
            return batches

    pipe = with_guider("sdxl", lambda: Other(4.0))
    with pytest.raises(EngineError, match="Other prepares a prediction 'pred_other'"):
        HookedDiffusion(pipe).run_with_cache(PROMPT, **settings("sdxl"))


def test_another_guider_between_runs_is_followed() -> None:
    pipe = with_guider("sdxl", CASES["cfg"][1])
    model, seen = HookedDiffusion(pipe), []
    with model.hooks([("mid.hook_h", lambda _, hook: seen.append(hook.branch))]):
        model(PROMPT, **settings("sdxl", steps=1))
        guided(pipe, 1.0)
        model(PROMPT, **settings("sdxl", steps=1))
        pipe.update_components(guider=CASES["perturbed"][1]())
        model(PROMPT, **settings("sdxl", steps=2))
    assert seen == ["cond", "uncond", "cond", "cond", "uncond", "cond", "uncond", "perturbed"]


def test_a_step_at_which_a_guider_does_not_guide_is_named() -> None:
    pipe = with_guider("qwen_image", CASES["cfg in a window"][1])
    model, given = HookedDiffusion(pipe), settings("qwen_image", steps=4)
    hooks = [(Site("hook_noise_pred", branch="uncond", steps=[0, 1]), lambda _a, _hook: None)]
    with pytest.raises(HookNeverFiredError, match="did not at step 0, which the run had: the pipe"):
        model.run_with_hooks(PROMPT, fwd_hooks=hooks, **given)
    _, cache = model.run_with_cache(PROMPT, names_filter="hook_noise_pred", branch="all", **given)
    assert (cache.cond.steps, cache.uncond.steps) == ([0, 1, 2, 3], [1, 2])
    assert len(cache.uncond["hook_noise_pred"]) == 2


def test_a_branch_that_no_guider_makes_is_refused() -> None:
    pipe = with_guider("sdxl", lambda: guiders.ClassifierFreeGuidance(1.0))
    hooks = [(Site("mid.hook_h", branch="uncond"), lambda _activation, _hook: None)]
    with pytest.raises(HookNeverFiredError):
        HookedDiffusion(pipe).run_with_hooks(PROMPT, fwd_hooks=hooks, **settings("sdxl"))


def test_the_guider_of_a_classic_pipeline_tells_its_branches() -> None:
    video = fresh_video(TINY_VIDEOS["hunyuan_video_15"])
    with contextlib.redirect_stderr(io.StringIO()):
        video.pipe.guider = skipping("transformer_blocks", skip_attention=False)
    seen: list[tuple[int, str]] = []
    hooks = [("hook_noise_pred", lambda _, hook: seen.append((hook.step, hook.branch)))]
    given = {one: value for one, value in video.settings.items() if one != "guidance_scale"}
    HookedDiffusion(video.pipe).run_with_hooks(fwd_hooks=hooks, **given)
    assert seen == [
        (step, branch)
        for step in range(3)
        for branch in ("cond", "uncond", "skip")
        if branch != "skip" or step  # whose window begins behind the first step
    ]


def test_each_denoiser_of_wan_has_its_own_guider() -> None:
    classic = fresh_video(wan_two).pipe
    with contextlib.redirect_stderr(io.StringIO()):
        second = guiders.ClassifierFreeGuidance(1.0)
    pipe = put_together(classic, "Wan22Blocks", guider_2=second)
    guided(pipe)
    given = settings("wan", steps=3)
    seen: dict[str, list[tuple[int, str]]] = {"transformer": [], "transformer_2": []}
    taken: dict[str, list[int]] = {"transformer": [], "transformer_2": []}
    steps: list[int] = []
    handles = [
        getattr(pipe, name).register_forward_hook(lambda *_, to=found: to.append(len(steps)))
        for name, found in taken.items()
    ]
    kind = type(pipe.scheduler)
    original = kind.step

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        steps.append(1)
        return original(self, *args, **kwargs)

    kind.step = step
    try:
        pipe(prompt=PROMPT, generator=generator(), **given)
    finally:
        kind.step = original
        for handle in handles:
            handle.remove()
    expected = {name: list(dict.fromkeys(found)) for name, found in taken.items()}
    assert expected["transformer"] and expected["transformer_2"]
    assert [len(found) for found in taken.values()] == [
        2 * len(expected["transformer"]),
        len(expected["transformer_2"]),
    ]
    for name, found in seen.items():
        first, last = expected[name][0], expected[name][-1] + 1
        site = Site("hook_noise_pred", steps=range(first, last))
        hooks = [(site, lambda _, hook, to=found: to.append((hook.step, hook.branch)))]
        HookedDiffusion(pipe, denoiser=name).run_with_hooks(PROMPT, fwd_hooks=hooks, **given)
        branches = ("cond", "uncond") if name == "transformer" else ("cond",)
        assert found == [(one, branch) for one in expected[name] for branch in branches]


def test_denoise_keeps_to_the_windows_of_the_guider() -> None:
    name, make, _ = CASES["skip in a window"]
    pipe = with_guider(name, make)
    model = HookedDiffusion(pipe)
    latents = latents_of(model(PROMPT, seed=0, **settings(name, steps=1)))
    for step, branches in ((1, 2), (2, 3), (3, 2)):
        pipe = with_guider(name, make)
        state = dict(vars(pipe.guider))
        found = model.denoise(latents, prompt=PROMPT, step=step, **settings(name, steps=4))
        assert len(found.branches) == branches
        assert dict(vars(pipe.guider)) == state


def test_momentum_of_steps_before_is_refused_in_denoise() -> None:
    def make() -> Any:
        return guiders.AdaptiveProjectedGuidance(4.0, adaptive_projected_guidance_momentum=-0.5)

    model = HookedDiffusion(with_guider("sdxl", make))
    latents = latents_of(model(PROMPT, seed=0, **settings("sdxl", steps=1)))
    with pytest.raises(Exception, match="has a momentum of the steps before"):
        model.denoise(latents, prompt=PROMPT, step=1, **settings("sdxl"))


def test_what_this_library_says_of_the_blur_is_still_true() -> None:
    """`prepare_models` of SmoothedEnergyGuidance counts nothing, so that it never hooks."""
    with contextlib.redirect_stderr(io.StringIO()):
        guider = blurring("blocks")
    guider.set_state(1, 4, torch.tensor(1))
    for _ in range(3):
        guider.prepare_models(SimpleNamespace())  # type: ignore[arg-type]
    assert guider._count_prepared == 0
    assert diffusers.__version__
