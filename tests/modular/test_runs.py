"""Modular pipelines run under the wrapper as by themselves, and as the classic ones do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from diffusion_lens import HookedDiffusion, Site
from diffusion_lens.errors import WordError
from tests.modular.pipelines import (
    FAMILIES,
    PROMPT,
    generator,
    guided,
    of_classic,
    put_together,
    settings,
    shared,
)
from tests.pipelines import latents_of, traces
from tests.tiny_videos.families import TINY_VIDEOS, fresh_video

EVERY = pytest.mark.parametrize("name", FAMILIES)
BIT_FOR_BIT = ("flux", "flux2", "flux2_klein_base", "qwen_image", "wan")
"""Where diffusers evaluates the branches one by one in the classic pipeline as well."""

PIXELS: dict[str, Any] = {"output_type": "pt"}


def modular(name: str) -> Any:
    pipe = shared(name)[1]
    if FAMILIES[name].scale:
        guided(pipe)
    return pipe


def denoiser_of(pipe: Any) -> Any:
    return getattr(pipe, "unet", None) or pipe.transformer


@EVERY
def test_reading_hooks_change_no_bit_and_leave_no_trace(name: str) -> None:
    pipe, kind = modular(name), PIXELS
    plain = pipe(prompt=PROMPT, generator=generator(), **settings(name, **kind))
    expected = plain.get("images") if plain.get("images") is not None else plain.get("videos")
    before, model = traces(pipe), HookedDiffusion(pipe)
    bare = model(PROMPT, seed=0, **settings(name, **kind))
    names = ["blocks.*.img.hook_resid_post", "**.hook_pattern", "hook_pred_x0"]
    out, cache = model.run_with_cache(
        PROMPT, seed=0, names_filter=names, branch="all", **settings(name, **kind)
    )
    for one in (bare, out):
        drawn = one.images if one.frames is None else one.frames
        assert torch.equal(torch.as_tensor(drawn), torch.as_tensor(expected))
    assert torch.equal(latents_of(bare), latents_of(out))
    assert cache.steps == [0, 1]
    assert traces(pipe) == before


@EVERY
def test_activations_are_those_of_the_classic_pipeline(name: str) -> None:
    classic, pipe = shared(name)[0], modular(name)
    given = settings(name)
    names = ["blocks.*.img.hook_resid_post", "blocks.*.txt.hook_resid_pre", "hook_guided_pred"]
    if name in ("sdxl", "ltx", "wan", "z_image"):
        names[1] = "**.txt.hook_k"
    kept: dict[str, Any] = {
        "seed": 0,
        "names_filter": names,
        "branch": "all",
        "output_type": "latent",
    }
    ours, cache = HookedDiffusion(pipe).run_with_cache(PROMPT, **kept, **given)
    theirs, same = HookedDiffusion(classic).run_with_cache(
        PROMPT, **kept, **of_classic(name, given)
    )
    assert set(cache.entries) == set(same.entries)
    branches = {branch for _, branch in cache.entries}
    assert {"cond", "uncond"} <= branches or FAMILIES[name].scale is None
    for key, steps in cache.entries.items():
        for step, value in steps.items():
            close(name, value, same.entries[key][step])
    close(name, latents_of(ours), latents_of(theirs))


def close(name: str, value: Tensor, expected: Tensor) -> None:
    if name in BIT_FOR_BIT:
        assert torch.equal(value, expected)
    else:
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-3)


@EVERY
def test_denoise_is_one_step_of_a_run(name: str) -> None:
    pipe = modular(name)
    given = settings(name, steps=3)
    outputs, steps = recorded(pipe, **given)
    each = len(outputs) // len(steps)
    model = HookedDiffusion(pipe)
    for step in (0, 2):
        guidance, latents = steps[step]
        found = model.denoise(latents, prompt=PROMPT, step=step, **given)
        assert torch.equal(found.guided, guidance)
        assert torch.equal(found.cond, outputs[step * each])
        if FAMILIES[name].scale:
            assert torch.equal(found.uncond, outputs[step * each + 1])


def recorded(pipe: Any, **given: Any) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
    """What the denoiser gives, and what the scheduler is given, by plain hooks."""
    outputs: list[Tensor] = []
    steps: list[tuple[Tensor, Tensor]] = []
    kind = type(pipe.scheduler)
    original = kind.step

    def keep(_module: Any, _args: Any, output: Any) -> None:
        first = output[0]
        outputs.append(torch.stack(first) if isinstance(first, list) else first)

    def step(self: Any, prediction: Tensor, timestep: Any, sample: Tensor, **more: Any) -> Any:
        steps.append((prediction.clone(), sample.clone()))
        return original(self, prediction, timestep, sample, **more)

    handle = denoiser_of(pipe).register_forward_hook(keep)
    kind.step = step
    try:
        pipe(prompt=PROMPT, generator=generator(), **given)
    finally:
        kind.step = original
        handle.remove()
    return outputs, steps


@EVERY
def test_latents_decode_to_the_images_of_the_run(name: str) -> None:
    model, kind = HookedDiffusion(modular(name)), PIXELS
    out = model(PROMPT, seed=0, **settings(name, **kind))
    size = {one: FAMILIES[name].settings[one] for one in ("height", "width")}
    drawn = out.images if out.frames is None else out.frames
    found = model.decode_latents(latents_of(out), **kind, **size)
    assert torch.equal(torch.as_tensor(found), torch.as_tensor(drawn))
    if out.frames is None:
        latents = model.encode_image(out.images, **size)
        assert torch.equal(
            latents, HookedDiffusion(shared(name)[0]).encode_image(out.images, **size)
        )


def test_hunyuan_video_15_tells_no_words_and_does_the_rest() -> None:
    classic = fresh_video(TINY_VIDEOS["hunyuan_video_15"]).pipe
    pipe = put_together(classic, "HunyuanVideo15AutoBlocks")
    given: dict[str, Any] = {"height": 32, "width": 48, "num_frames": 9, "num_inference_steps": 2}
    model = HookedDiffusion(pipe)
    out = model(PROMPT, seed=0, **PIXELS, **given)
    found = model.decode_latents(latents_of(out), height=32, width=48, **PIXELS)
    assert torch.equal(torch.as_tensor(found), torch.as_tensor(out.frames))
    outputs, steps = recorded(pipe, **given)
    one = model.denoise(steps[1][1], prompt=PROMPT, step=1, **given)
    assert torch.equal(one.guided, steps[1][0])
    assert torch.equal(torch.cat([one.cond, one.uncond]), torch.cat(outputs[2:]))
    with pytest.raises(WordError, match="HunyuanVideo15TextEncoderStep makes of a prompt is not"):
        model.words(PROMPT, "cat")


@pytest.mark.parametrize("name", ["sdxl", "qwen_image"])
def test_several_prompts_and_images_share_a_batch(name: str) -> None:
    model, shapes = HookedDiffusion(modular(name)), set()
    given = settings(name, num_images_per_prompt=2, output_type="latent")
    given["negative_prompt"] = [given["negative_prompt"]] * 2

    def see(activation: Tensor, hook: Any) -> None:
        shapes.add((hook.branch, activation.shape[0], tuple(hook.words)))

    site = Site("blocks.0.img.hook_resid_post", branch="cond")
    prompts = ["a red cat", "a red cat"]
    out = model.run_with_hooks(prompts, seed=[3, 4], fwd_hooks=[(site, see)], **given)
    assert shapes == {("cond", 4, ("a", "red", "cat"))}
    single = model("a red cat", seed=4, **settings(name, output_type="latent"))
    torch.testing.assert_close(latents_of(out)[2], latents_of(single)[0], rtol=1e-3, atol=1e-3)


def test_hooks_fire_on_the_users_own_calls() -> None:
    pipe = modular("sdxl")
    model = HookedDiffusion(pipe)
    given = settings("sdxl")
    with model.caching("mid.hook_h", branch="all") as cache:
        pipe(prompt=PROMPT, generator=generator(), **given)
    assert {branch for _, branch in cache.entries} == {"cond", "uncond"}
    state = pipe(prompt=PROMPT, generator=generator(), **given)
    seen = []

    def see(_activation: Tensor, hook: Any) -> None:
        seen.append((hook.step, hook.branch, tuple(hook.words)))

    with model.hooks([(Site("mid.hook_h", branch="cond"), see)]):
        pipe(state, prompt="two dogs", generator=generator())
    assert seen == [(0, "cond", ("two", "dogs")), (1, "cond", ("two", "dogs"))]


def test_what_made_a_result_names_its_guider() -> None:
    pipe = modular("sdxl")
    guided(pipe, 3.5)
    out = HookedDiffusion(pipe)(PROMPT, seed=0, **settings("sdxl", steps=1))
    (config,) = out.made_by.guiders.values()
    assert config["guidance_scale"] == 3.5
    assert "3.5" in str(out.made_by.as_dict()["guiders"])


@pytest.mark.parametrize("masked", [False, True])
def test_image_to_image_counts_its_own_steps(masked: bool) -> None:
    pipe = modular("sdxl")
    image = Image.new("RGB", (64, 64), (200, 30, 30))
    given = settings("sdxl", steps=4, image=image, strength=0.5)
    given |= {"mask_image": Image.new("L", (64, 64), 255)} if masked else {}
    timesteps: list[float] = []
    handle = pipe.unet.register_forward_pre_hook(lambda _, args: timesteps.append(float(args[1])))
    seen: list[tuple[int, str, float]] = []

    def see(_activation: Tensor, hook: Any) -> None:
        seen.append((hook.step, hook.branch, hook.timestep))

    out = HookedDiffusion(pipe).run_with_hooks(PROMPT, fwd_hooks=[("mid.hook_h", see)], **given)
    handle.remove()
    assert [step for step, _, _ in seen] == [0, 0, 1, 1]
    assert [branch for _, branch, _ in seen] == ["cond", "uncond"] * 2
    assert [timestep for _, _, timestep in seen] == timesteps
    state = pipe(prompt=PROMPT, generator=[generator()], **given)
    assert torch.equal(latents_of(out), state.get("latents"))
