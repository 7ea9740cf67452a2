"""Video models: latents with frames, in and out of the autoencoder and the denoiser."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import CogVideoXDPMScheduler
from PIL import Image
from torch import Tensor

from diffusion_lens import HookContext, HookedDiffusion
from diffusion_lens.errors import RunError
from tests.pipelines import fresh_pipe, golden, latents_of, shared_pipe, short


@pytest.fixture
def model() -> HookedDiffusion:
    return HookedDiffusion(shared_pipe("cogvideox"))


def frames(count: int) -> list[Image.Image]:
    noise = np.random.default_rng(0).integers(0, 255, (count, 32, 32, 3), dtype=np.uint8)
    return [Image.fromarray(frame) for frame in noise]


@pytest.mark.parametrize(("given", "kept"), [(1, 1), (5, 2), (9, 3)])
def test_frames_become_latents_as_the_loop_holds_them(
    model: HookedDiffusion, given: int, kept: int
) -> None:
    latents = model.encode_image(frames(given))
    assert latents.shape == (1, kept, 4, 8, 8)
    with torch.no_grad():
        pixels = model.pipe.video_processor.preprocess_video(frames(given))  # type: ignore[union-attr]
        expected = model.pipe.vae.encode(pixels).latent_dist.mode()  # type: ignore[union-attr]
    scale = model.pipe.vae.config.scaling_factor  # type: ignore[union-attr]
    assert torch.equal(latents, (scale * expected).permute(0, 2, 1, 3, 4))


def test_one_image_is_one_frame_and_nested_lists_are_several_videos(
    model: HookedDiffusion,
) -> None:
    (frame,) = frames(1)
    assert torch.equal(model.encode_image(frame), model.encode_image([frame]))
    assert model.encode_image([frames(5), frames(5)]).shape == (2, 2, 4, 8, 8)
    assert model.encode_image(frame, height=48, width=64).shape == (1, 1, 4, 12, 16)


def test_frames_that_the_autoencoder_does_not_take_are_refused(model: HookedDiffusion) -> None:
    with pytest.raises(RunError, match=r"7 frames were given; .* give 5 or 9"):
        model.encode_image(frames(7))


def test_latents_become_the_pipelines_own_frames(model: HookedDiffusion) -> None:
    given = golden("cogvideox")
    found = model.decode_latents(given.expected["plain.latents"], output_type="np")
    grey = np.round(255 * found[0]).astype(int)
    assert np.abs(grey - given.expected["plain.image"].numpy().astype(int)).max() <= 2


def test_one_evaluation_is_the_runs_own(model: HookedDiffusion) -> None:
    settings = short("cogvideox")
    names = ["hook_sample", "hook_guided_pred", "hook_noise_pred"]
    _, cache = model.run_with_cache(names_filter=names, branch="all", **settings)
    settings = {key: settings[key] for key in ("prompt", "guidance_scale", "num_inference_steps")}
    for step in (0, 1):
        latents = cache.at(step=step)["hook_sample"]
        prediction = model.denoise(latents, step=step, **settings)
        assert torch.equal(prediction.cond, cache.cond["hook_noise_pred"][step])
        assert torch.equal(prediction.uncond, cache.uncond["hook_noise_pred"][step])
        guided = cache.at(step=step)["hook_guided_pred"]
        assert torch.equal(prediction.guided, guided)


@pytest.mark.parametrize("count", [1, 5])
def test_given_videos_are_noised_and_denoised_once(model: HookedDiffusion, count: int) -> None:
    latents = model.encode_image(frames(count))
    noised = model.add_noise(latents, noise_level=0.5, seed=1)
    grids = []
    with model.hooks([("blocks.0.attn.img.hook_z", lambda _v, hook: grids.append(hook.grid))]):
        prediction = model.denoise(noised, prompt="a cat", noise_level=0.5)
    assert prediction.cond.shape == latents.shape
    assert set(grids) == {(latents.shape[1], 4, 4)}


def test_noise_is_added_on_the_schedule_of_the_scheduler(model: HookedDiffusion) -> None:
    latents = model.encode_image(frames(5))
    noise = torch.randn((1, *latents.shape[1:]), generator=torch.Generator().manual_seed(3))
    scheduler: Any = model.pipe.scheduler  # type: ignore[union-attr]
    expected = scheduler.add_noise(latents, noise, torch.tensor([500]))
    found = model.add_noise(latents, noise_level=0.5, seed=3)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_the_other_scheduler_of_the_family_is_followed() -> None:
    pipe = fresh_pipe("cogvideox")
    pipe.scheduler = CogVideoXDPMScheduler.from_config(pipe.scheduler.config)
    settings = short("cogvideox", steps=3)
    plain = pipe(**settings, generator=torch.Generator().manual_seed(0))[0]
    model = HookedDiffusion(pipe)
    seen: list[tuple[str, int, Tensor]] = []

    def read(value: Tensor, hook: HookContext) -> None:
        seen.append((hook.name, hook.step, value.clone()))

    hooks = [(name, read) for name in ("hook_sample", "hook_guided_pred", "hook_pred_x0")]
    out = model.run_with_hooks(fwd_hooks=hooks, **settings)
    assert torch.equal(latents_of(out), plain)
    assert sorted({step for _, step, _ in seen}) == [0, 1, 2]
    values = {(name, step): value for name, step, value in seen}
    assert torch.equal(values["hook_sample", 0], golden("cogvideox").inputs["latents"])
    # The last step lands on the clean latents that its prediction implies.
    torch.testing.assert_close(values["hook_pred_x0", 2], plain, atol=1e-4, rtol=1e-4)


def test_guidance_that_changes_from_step_to_step_keeps_its_branches(
    model: HookedDiffusion,
) -> None:
    branches = []
    hook = ("blocks.0.attn.img.hook_z", lambda _value, hook: branches.append(hook.branch))
    settings = short("cogvideox", use_dynamic_cfg=True)
    model.run_with_hooks(fwd_hooks=[hook], **settings)
    assert branches == ["uncond", "cond"] * 2
