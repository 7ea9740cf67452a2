"""Wan 2.2: one denoiser above a noise level, another below it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lens import HookedDiffusion, Site
from diffusion_lens.errors import EngineError, UnsupportedModelError
from tests.pipelines import latents_of, traces
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
