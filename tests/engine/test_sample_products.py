"""Attention sample by sample, without dropped tokens (Mochi), beside what its processor does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor
from torch.overrides import TorchFunctionMode

from diffusion_lens import HookedDiffusion, Site
from diffusion_lens.engine.noise import noise_level
from diffusion_lens.errors import EngineError
from diffusion_lens.testing import tiny_denoiser
from tests.pipelines import latents_of
from tests.tiny_videos import others
from tests.tiny_videos.families import fresh_video, tiny_video
from tests.tiny_videos.settings import NEGATIVE, PROMPT

KEPT = (5, 7)
"""Text tokens of each sample that the tiny denoiser's mask keeps; the image has 48."""

TEXT, IMAGE = 7, 48


class Explicit(TorchFunctionMode):
    """Works every product of the blocks out in steps, with one key left out of the values."""

    def __init__(self, dropped: int | None = None) -> None:
        super().__init__()
        self.dropped = dropped
        self.seen: list[dict[str, Tensor]] = []

    def __torch_function__(
        self, function: Any, _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is not F.scaled_dot_product_attention or args[0].shape[2] == 1:
            return function(*args, **(kwargs or {}))
        query, key, value = args[:3]
        pattern = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1)
        if self.dropped is not None:
            pattern = pattern.clone()
            pattern[..., self.dropped] = 0.0
        self.seen.append({"q": query, "k": key, "v": value, "pattern": pattern})
        return pattern @ value


def padded(value: Tensor, *axes: int) -> Tensor:
    """A sample's tensor with zeros where its dropped tokens are."""
    for axis in axes:
        shape = list(value.shape)
        shape[axis] = IMAGE + TEXT - shape[axis]
        value = torch.cat([value, value.new_zeros(shape)], axis)
    return value


def test_one_product_is_shown_in_place_of_one_for_each_sample() -> None:
    denoiser, inputs = tiny_denoiser("mochi", dtype=torch.float64)
    model, by_hand = HookedDiffusion(denoiser), Explicit()
    with torch.no_grad(), by_hand:
        denoiser(**inputs)
    with torch.no_grad(), model.caching("blocks.*.attn.**") as cache:
        denoiser(**inputs)
    assert [one["k"].shape[2] - IMAGE for one in by_hand.seen] == [*KEPT] * 3
    for index in range(3):
        pair = by_hand.seen[2 * index : 2 * index + 2]
        pattern = torch.cat([padded(one["pattern"], 2, 3) for one in pair])
        found = cache[f"blocks.{index}.attn.hook_pattern"][0]
        torch.testing.assert_close(found, pattern.to(found), rtol=1e-6, atol=1e-9)
        for which in "qkv":
            joined = torch.cat([padded(one[which], 2) for one in pair]).transpose(1, 2)
            streams = {"img": joined[:, :IMAGE], "txt": joined[:, IMAGE:]}
            for stream, expected in streams.items():
                found = cache[f"blocks.{index}.attn.{stream}.hook_{which}"][0]
                torch.testing.assert_close(found, expected.to(found), rtol=1e-6, atol=1e-9)


def test_an_edited_pattern_is_what_each_sample_attends_by() -> None:
    denoiser, inputs = tiny_denoiser("mochi", dtype=torch.float64)
    model = HookedDiffusion(denoiser)
    with torch.no_grad(), Explicit(dropped=IMAGE + 2):
        expected = denoiser(**inputs).sample
    site = Site("blocks.*.attn.hook_pattern", key=("txt", 2))
    with torch.no_grad(), model.hooks([(site, lambda value, _: torch.zeros_like(value))]):
        found = denoiser(**inputs).sample
    with torch.no_grad():
        plain = denoiser(**inputs).sample
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert (found - plain).abs().max() > 1e-3


def test_a_dropped_token_moves_nothing() -> None:
    denoiser, inputs = tiny_denoiser("mochi")
    model = HookedDiffusion(denoiser)
    with torch.no_grad():
        plain = denoiser(**inputs).sample
    for which in "qkv":
        site = Site(f"blocks.0.attn.txt.hook_{which}", pos=(5, 6))
        with torch.no_grad(), model.hooks([(site, lambda value, _: value + 1.0)]):
            found = denoiser(**inputs).sample
        assert torch.equal(found[0], plain[0])
        assert not torch.equal(found[1], plain[1])


def test_a_mask_with_holes_is_refused() -> None:
    denoiser, inputs = tiny_denoiser("mochi")
    inputs["encoder_attention_mask"][1, 2] = False
    model = HookedDiffusion(denoiser)
    with (
        torch.no_grad(),
        pytest.raises(EngineError, match=r"moves those forward.*padding_side"),
        model.caching("blocks.0.attn.hook_pattern"),
    ):
        denoiser(**inputs)
    with torch.no_grad(), model.caching("blocks.0.img.hook_resid_post"):
        denoiser(**inputs)


@pytest.mark.slow
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("negative", ["", NEGATIVE])
def test_prompts_and_negative_prompts_of_any_length_go_together(
    negative: str, *, zeros: bool
) -> None:
    made = fresh_video(others.mochi)
    made.pipe.register_to_config(force_zeros_for_empty_prompt=zeros)
    model, name = HookedDiffusion(made.pipe), "blocks.1.attn.hook_pattern"
    prompts = [PROMPT, "a red cat"]
    given = {**made.settings, "prompt": prompts, "negative_prompt": [negative] * 2}
    plain = latents_of(model(**given))
    hooked, cache = model.run_with_cache(**given, names_filter=[name], branch="all")
    assert torch.equal(latents_of(hooked), plain)
    for row, prompt in enumerate(prompts):
        pattern = cache.cond[name][0][row]
        kept = len(made.pipe.tokenizer(prompt).input_ids)
        sums = pattern.sum(-1)
        assert torch.allclose(sums[:, : 18 + kept], torch.ones(()))
        assert not sums[:, 18 + kept :].any() and not pattern[..., 18 + kept :].any()
        assert pattern[:, : 18 + kept, : 18 + kept].all()
    empty = 0 if zeros and not negative else len(made.pipe.tokenizer(negative).input_ids)
    assert (cache.uncond[name][0].sum(-1) > 0.5).sum(-1).unique().tolist() == [18 + empty]


def test_what_the_last_step_implies_is_what_it_ends_at() -> None:
    made = tiny_video("mochi")
    model = HookedDiffusion(made.pipe)
    given = {**made.settings, "generator": None}
    out, cache = model.run_with_cache(
        **{key: value for key, value in given.items() if value is not None},
        names_filter=["hook_pred_x0", "hook_sample"],
    )
    torch.testing.assert_close(cache["hook_pred_x0"][-1], latents_of(out), rtol=1e-5, atol=1e-5)
    sigmas = made.pipe.scheduler.sigmas
    assert sigmas[0] == 0.0 and sigmas[-1] == 1.0


def test_noise_is_counted_down_though_timesteps_are_counted_up() -> None:
    made = tiny_video("mochi")
    model, seen = HookedDiffusion(made.pipe), []
    latents = torch.zeros(1, 12, 3, 4, 6)
    noised = model.add_noise(latents + 1.0, noise_level=0.25, seed=0)
    noise = (noised - 0.75) / 0.25
    torch.testing.assert_close(
        model.add_noise(latents, noise_level=1.0, seed=0), noise, rtol=1e-4, atol=1e-4
    )
    given = {key: value for key, value in made.settings.items() if key != "output_type"}

    def note(_value: Tensor, hook: Any) -> None:
        seen.append((hook.timestep, hook.sigma))

    with model.hooks([("hook_latents", note)]):
        predicted = model.denoise(noised, noise_level=0.25, **given)
    assert [pair for pair in seen if pair != (750.0, 0.25)] == []
    expected = noised + 0.25 * predicted.guided
    torch.testing.assert_close(predicted.pred_x0, expected, rtol=1e-5, atol=1e-5)


def test_a_stochastic_schedule_that_counts_the_data_is_refused() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True, stochastic_sampling=True)
    scheduler.set_timesteps(4)
    with pytest.raises(EngineError, match=r"invert_sigmas=True.*stochastic_sampling=False"):
        noise_level(scheduler, 500.0)
