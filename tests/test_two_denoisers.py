"""Two denoisers: of Wan 2.2 above and below a noise level, of Ideogram 4 for each branch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lens import HookedDiffusion, Site
from diffusion_lens.analyses import activation_patching
from diffusion_lens.errors import (
    EngineError,
    HookNeverFiredError,
    PatchingError,
    RunError,
    UnknownHookPointError,
    UnsupportedModelError,
)
from tests.pipelines import latents_of, traces
from tests.tiny_pipelines import PIPELINES, tiny_pipeline
from tests.tiny_videos.families import fresh_video
from tests.tiny_videos.settings import TinyVideo
from tests.tiny_videos.wan import wan_two


def seeded() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(0)]


@pytest.fixture(scope="module")
def two() -> TinyVideo:
    """Of three steps the first one is the first denoiser's."""
    return fresh_video(wan_two)


def test_each_of_two_denoisers_is_hooked_by_itself(two: TinyVideo) -> None:
    assert (two.pipe.scheduler.config.num_train_timesteps * 0.875) == 875
    expected = two.pipe(**two.settings, generator=seeded()).frames
    seen: dict[str, list[tuple[int, float, str]]] = {"transformer": [], "transformer_2": []}
    firsts = {"transformer": slice(0, 1), "transformer_2": slice(1, None)}
    for which, steps in firsts.items():
        model = HookedDiffusion(two.pipe, denoiser=which)
        assert model.denoiser is getattr(two.pipe, which)

        def note(_value: Tensor, hook: Any, which: str = which) -> None:
            seen[which].append((hook.step, hook.timestep, hook.branch))

        site = Site("blocks.1.attn.hook_pattern", steps=steps)
        out = model.run_with_hooks(**two.settings, fwd_hooks=[(site, note)])
        assert torch.equal(latents_of(out), expected)
    timesteps = two.pipe.scheduler.timesteps.tolist()
    assert timesteps[0] >= 875 > timesteps[1]
    by_step = [
        (step, timesteps[step], branch) for step in range(3) for branch in ("cond", "uncond")
    ]
    assert seen["transformer"] == by_step[:2] and seen["transformer_2"] == by_step[2:]


@pytest.mark.parametrize("which", ["transformer", "transformer_2"])
def test_a_step_of_the_other_denoiser_is_refused(two: TinyVideo, which: str) -> None:
    model = HookedDiffusion(two.pipe, denoiser=which)
    step, other = (1, "transformer_2") if which == "transformer" else (0, "transformer")
    message = (
        f"waits for step {step}, which WanPipeline takes with its `{other}`.*denoiser='{other}'"
    )
    before = traces(two.pipe)
    with pytest.raises(EngineError, match=message):
        model.run_with_cache(**two.settings, names_filter="blocks.0.img.hook_resid_pre")
    assert traces(two.pipe) == before
    with pytest.raises(
        UnsupportedModelError, match="no denoiser 'unet'; it has transformer, transformer_2"
    ):
        HookedDiffusion(two.pipe, denoiser="unet")


def test_without_a_boundary_one_denoiser_takes_every_step() -> None:
    made = fresh_video(wan_two)
    made.pipe.register_to_config(boundary_ratio=None)
    model, name = HookedDiffusion(made.pipe), "blocks.0.img.hook_resid_pre"
    _, cache = model.run_with_cache(**made.settings, names_filter=name)
    assert len(cache[name]) == 3


def test_what_the_scheduler_gets_is_known_at_the_steps_of_both(two: TinyVideo) -> None:
    model, found = HookedDiffusion(two.pipe), []

    def note(_value: Tensor, hook: Any) -> None:
        found.append((hook.step, hook.timestep))

    names = ["hook_sample", "hook_guided_pred"]
    hooks = [(Site("hook_sample"), note), (Site("hook_pred_x0", steps=[0]), note)]
    _, cache = model.run_with_cache(**two.settings, names_filter=names)
    model.run_with_hooks(**two.settings, fwd_hooks=hooks)
    timesteps = two.pipe.scheduler.timesteps.tolist()
    assert found == [(0, timesteps[0]), *enumerate(timesteps)]
    settings = {key: value for key, value in two.settings.items() if key != "output_type"}
    for step in range(3):
        prediction = model.denoise(cache.at(step=step)["hook_sample"], step=step, **settings)
        assert set(prediction.branches) == {"cond", "uncond"}
        assert torch.equal(prediction.guided, cache.at(step=step)["hook_guided_pred"])


def by_hand(two: TinyVideo, names: dict[str, str]) -> dict[str, list[Tensor]]:
    """What blocks return, seen by plain torch hooks: one tensor for each call."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    handles = [
        getattr(two.pipe, path.split(".")[0])
        .get_submodule(path.split(".", 1)[1])
        .register_forward_hook(lambda _m, _a, out, name=name: found[name].append(out.clone()))
        for name, path in names.items()
    ]
    two.pipe(**two.settings, generator=seeded())
    for handle in handles:
        handle.remove()
    return found


def test_both_denoisers_are_hooked_in_one_run(two: TinyVideo) -> None:
    names = {
        "blocks.1.img.hook_resid_post": "transformer.blocks.1",
        "denoiser2.blocks.0.img.hook_resid_post": "transformer_2.blocks.0",
        "denoiser2.blocks.1.img.hook_resid_post": "transformer_2.blocks.1",
    }
    expected = by_hand(two, names)
    model = HookedDiffusion(two.pipe)
    before = two.pipe(**two.settings, generator=seeded()).frames
    out, cache = model.run_with_cache(**two.settings, names_filter=list(names), branch="all")
    assert torch.equal(latents_of(out), before)
    for name, values in expected.items():
        steps = [0] if name.startswith("blocks") else [1, 2]
        for at, step in enumerate(steps):
            for call, branch in enumerate(("cond", "uncond")):
                found = cache.branch(branch).at(step=step)[name]
                assert torch.equal(found, values[2 * at + call]), (name, step, branch)
    conds = cache.branch("cond")
    assert len(conds["blocks.1.img.hook_resid_post"]) == 1
    assert conds.stack("denoiser2.blocks.*.img.hook_resid_post").shape[:2] == (2, 2)
    assert conds.stack("img.hook_resid_post").shape[:2] == (1, 1)
    shown = {row.name: row.fired for row in out.report}
    assert shown == {name: 2 if name.startswith("blocks") else 4 for name in names}


def test_an_edit_of_the_second_denoiser_is_the_same_edit_by_hand(two: TinyVideo) -> None:
    model = HookedDiffusion(two.pipe)
    hooks = [(Site("denoiser2.blocks.0.img.hook_resid_post", steps=[2]), lambda x, _: x * 0.5)]
    edited = latents_of(model.run_with_hooks(**two.settings, fwd_hooks=hooks))
    calls: list[int] = []

    def halve(_module: Any, _args: Any, output: Tensor) -> Tensor | None:
        calls.append(1)
        return output * 0.5 if len(calls) > 2 else None

    handle = two.pipe.transformer_2.blocks[0].register_forward_hook(halve)
    expected = two.pipe(**two.settings, generator=seeded()).frames
    handle.remove()
    assert len(calls) == 4 and torch.equal(edited, expected)
    assert not torch.equal(edited, two.pipe(**two.settings, generator=seeded()).frames)


@pytest.mark.parametrize(
    ("name", "steps", "said"),
    [
        ("denoiser2.blocks.0.attn.hook_pattern", [0], "first took the steps 0, and the second"),
        ("denoiser2.blocks.0.attn.hook_pattern", [0, 1], "are `denoiser2.…`, the steps 1, 2"),
        ("blocks.0.attn.hook_pattern", slice(0, 2), "first took the steps 0, and the second"),
    ],
)
def test_steps_of_the_other_denoiser_are_told(
    two: TinyVideo, name: str, steps: Any, said: str
) -> None:
    model = HookedDiffusion(two.pipe)
    both = ["blocks.1.img.hook_resid_pre", "denoiser2.blocks.1.img.hook_resid_pre"]
    with pytest.raises(HookNeverFiredError, match=said):
        model.run_with_cache(**two.settings, names_filter=[Site(name, steps=steps), *both])


def test_hooks_in_one_of_two_say_at_which_steps(two: TinyVideo) -> None:
    model = HookedDiffusion(two.pipe)
    for name, step in (("blocks.0.img.hook_resid_pre", 1), ("denoiser2.**.hook_resid_pre", 0)):
        with pytest.raises(EngineError, match=f"waits for step {step}, .*put hooks on both"):
            model.run_with_cache(**two.settings, names_filter=name)
    _, cache = model.run_with_cache(**two.settings)
    assert set(cache.keys()) == {"hook_sample", "hook_guided_pred"}


def test_names_of_the_second_are_asked_for(two: TinyVideo) -> None:
    model = HookedDiffusion(two.pipe)
    first = [name for name in model.hook_names() if model.points[name].module != "scheduler"]
    assert model.hook_names("denoiser2.**") == [f"denoiser2.{name}" for name in first]
    assert [row.shape for row in model.hook_table("denoiser2.**")] == [
        row.shape for row in model.hook_table() if row.module != "scheduler"
    ]
    one = HookedDiffusion(two.pipe, denoiser="transformer_2")
    with pytest.raises(UnknownHookPointError):
        one.hook_names("denoiser2.**")
    hooks = [(Site("denoiser2.blocks.0.img.hook_resid_pre"), lambda *_: None)]
    with (
        model.hooks(fwd_hooks=hooks),
        pytest.raises(RunError, match="another HookedDiffusion"),
    ):
        one(**two.settings)


def test_a_single_evaluation_takes_the_denoiser_of_its_step(two: TinyVideo) -> None:
    model, seen = HookedDiffusion(two.pipe), []
    _, cache = model.run_with_cache(**two.settings, names_filter="hook_sample")
    settings = {key: value for key, value in two.settings.items() if key != "output_type"}
    names = ["blocks.0.img.hook_resid_pre", "denoiser2.blocks.0.img.hook_resid_pre"]
    for step, name in ((0, names[0]), (1, names[1])):
        with model.hooks(fwd_hooks=[(Site(name), lambda _, hook: seen.append(hook.name))]):
            model.denoise(cache.at(step=step)["hook_sample"], step=step, **settings)
    assert seen == [names[0]] * 2 + [names[1]] * 2


def test_a_second_denoiser_of_the_other_branch() -> None:
    """Ideogram 4: one denoiser with text, another without."""
    one = PIPELINES["ideogram4"]
    pipe = tiny_pipeline("ideogram4")
    model = HookedDiffusion(pipe)
    settings = {**one.settings, **one.unguided, "num_inference_steps": 2, "output_type": "latent"}
    settings |= dict(zip(("height", "width"), one.pixels, strict=True))
    plain = pipe("a cat", generator=seeded(), **settings).images
    names = ["blocks.1.img.hook_resid_post", "denoiser2.blocks.1.img.hook_resid_post"]
    seen: list[Tensor] = []
    handle = pipe.unconditional_transformer.layers[1].register_forward_hook(
        lambda _module, _args, out: seen.append(out.clone())
    )
    out, cache = model.run_with_cache("a cat", **settings, names_filter=names, branch="all")
    handle.remove()
    assert torch.equal(latents_of(out), plain)
    assert set(cache.entries) == {(names[0], "cond"), (names[1], "uncond")}
    assert torch.equal(cache.branch("uncond")[names[1]], torch.stack(seen))
    site = Site("blocks.*.img.hook_resid_post", branch="uncond")
    with pytest.raises(HookNeverFiredError, match="are `denoiser2"):
        model.run_with_cache("a cat", **settings, names_filter=site)
    hooks = [(Site(names[1]), lambda x, _: x * 0.5)]
    assert not torch.equal(
        latents_of(model.run_with_hooks("a cat", **settings, fwd_hooks=hooks)), plain
    )


def test_patching_of_a_second_denoiser_is_refused(two: TinyVideo) -> None:
    model = HookedDiffusion(two.pipe)
    with pytest.raises(PatchingError, match="is of a second denoiser"):
        activation_patching(
            model,
            "a cat",
            "a dog",
            sites="denoiser2.blocks.*.img.hook_resid_post",
            axes=("block",),
        )
