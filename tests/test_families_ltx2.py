"""LTX-2 in its pipelines: a video and its sound, and predictions of four kinds at a step."""

# diffusers and transformers annotate more narrowly than they take.
# pyright: reportArgumentType=false, reportOptionalMemberAccess=false

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lens import HookedDiffusion, Run, Site
from diffusion_lens.analyses import activation_patching, attribution_patching
from diffusion_lens.errors import EngineError, PatchingError, RunError, WordError
from tests.pipelines import latents_of, traces
from tests.tiny_videos.families import fresh_video, tiny_video
from tests.tiny_videos.ltx2 import ltx2_image
from tests.tiny_videos.settings import NEGATIVE, PROMPT, TinyVideo

PERTURBED = {"stg_scale": 1.0, "spatio_temporal_guidance_blocks": [1]}
ISOLATED = {"modality_scale": 3.0}
OFF = {"guidance_scale": 1.0, "audio_guidance_scale": 1.0}
GUIDED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "none": (OFF, ("cond",)),
    "negative prompt": ({}, ("uncond", "cond")),
    "of the sound alone": ({"guidance_scale": 1.0}, ("uncond", "cond")),
    "perturbed": (OFF | PERTURBED, ("cond", "perturbed")),
    "of the sound alone, perturbed": (
        OFF | PERTURBED | {"stg_scale": 0.0, "audio_stg_scale": 1.0},
        ("cond", "perturbed"),
    ),
    "isolated": (ISOLATED, ("uncond", "cond", "isolated")),
    "of the sound alone, isolated": (
        OFF | {"audio_modality_scale": 2.0},
        ("cond", "isolated"),
    ),
    "all": (PERTURBED | ISOLATED, ("uncond", "cond", "perturbed", "isolated")),
}
EVERYWHERE = {"cond": slice(1, 2), "uncond": slice(0, 1)}
"""Rows of the branches that share a call."""

slow = pytest.mark.slow


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@contextmanager
def calls(module: Any) -> Iterator[list[tuple[tuple, dict[str, Any], Any]]]:
    """Arguments and output of each call of a module, by a plain hook of torch."""
    found: list[tuple[tuple, dict[str, Any], Any]] = []

    def keep(_module: Any, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        found.append((args, kwargs, output))

    handle = module.register_forward_hook(keep, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


def once(made: TinyVideo, **changes: Any) -> dict[str, Any]:
    """The denoiser's arguments in a run of one step, without the library."""
    settings = {**made.settings, "num_inference_steps": 1, "output_type": "latent", **changes}
    with calls(made.pipe.transformer) as found:
        made.pipe(**settings, generator=seeded())
    return found[0][1]


@pytest.mark.parametrize("name", [pytest.param(name, marks=slow) for name in GUIDED])
def test_the_sound_is_the_same_with_hooks_that_read(name: str) -> None:
    made, (more, branches) = tiny_video("ltx2"), GUIDED[name]
    settings = made.settings | more | {"output_type": "pt", "num_inference_steps": 2}
    expected, before = made.pipe(**settings, generator=seeded()), traces(made.pipe)
    model, seen = HookedDiffusion(made.pipe), []
    hooks = [
        (Site("**", branch="cond"), lambda value, _hook: None),
        ("hook_noise_pred", lambda _value, hook: seen.append((hook.step, hook.branch))),
    ]
    for out in (model(**settings), model.run_with_hooks(**settings, fwd_hooks=hooks)):
        assert torch.equal(out.frames, expected.frames)
        assert torch.equal(out.audio, expected.audio)
    assert seen == [(step, branch) for step in range(2) for branch in branches]
    assert traces(made.pipe) == before


@slow
def test_every_branch_is_the_call_that_it_is_called() -> None:
    """Against plain hooks of torch, in three evaluations of which the first holds two branches."""
    made = tiny_video("ltx2")
    settings = made.settings | PERTURBED | ISOLATED
    denoiser, model = made.pipe.transformer, HookedDiffusion(made.pipe)
    block = denoiser.transformer_blocks[1]
    with (
        calls(denoiser) as whole,
        calls(block) as blocks,
        calls(block.norm3) as norms,
        calls(block.audio_norm3) as sounds,
        calls(block.audio_attn1.to_out[0]) as heads,
    ):
        made.pipe(**settings, generator=seeded())
    held = {
        "hook_noise_pred": [output[0] for _, _, output in whole],
        "hook_text_emb": [given["encoder_hidden_states"] for _, given, _ in whole],
        "blocks.1.img.hook_resid_post": [output[0] for _, _, output in blocks],
        "blocks.1.audio.hook_resid_post": [output[1] for _, _, output in blocks],
        "blocks.1.img.hook_resid_mid": [args[0] for args, _, _ in norms],
        "blocks.1.audio.hook_resid_mid": [args[0] for args, _, _ in sounds],
        "blocks.1.audio_attn.audio.hook_z": [args[0].unflatten(-1, (2, 8)) for args, _, _ in heads],
    }
    given = [one for _, one, _ in whole]
    assert [one["isolate_modalities"] for one in given] == [False, False, True] * 3
    assert [one["spatio_temporal_guidance_blocks"] for one in given] == [None, [1], None] * 3
    _, cache = model.run_with_cache(**settings, names_filter=list(held), branch="all")
    assert list(cache.branches) == ["uncond", "cond", "perturbed", "isolated"]
    for name, values in held.items():
        for step in range(3):
            shared, perturbed, isolated = values[3 * step : 3 * step + 3]
            for branch, rows in EVERYWHERE.items():
                assert torch.equal(cache.branch(branch)[name][step], shared[rows])
            assert torch.equal(cache.branch("perturbed")[name][step], perturbed)
            assert torch.equal(cache.branch("isolated")[name][step], isolated)
            assert not torch.allclose(shared[1:], isolated) or name == "hook_text_emb"
            # LTX-2's attention is not perturbed: this is the conditional prediction once more.
            torch.testing.assert_close(shared[1:], perturbed)


@slow
@pytest.mark.parametrize("number", range(3))
def test_an_edit_in_one_branch_is_that_of_a_plain_hook(number: int) -> None:
    made, ran = tiny_video("ltx2"), []
    sound = {"audio_modality_scale": 3.0, "audio_stg_scale": 1.0, "output_type": "pt"}
    settings = made.settings | PERTURBED | ISOLATED | sound
    block, model = made.pipe.transformer.transformer_blocks[0], HookedDiffusion(made.pipe)

    def change(_module: Any, _args: Any, output: Any) -> Any:
        ran.append(len(ran) % 3)
        if ran[-1] != number:
            return None
        edited = output[1].clone()
        edited[-1:] *= 0.5  # the conditional rows come last
        return output[0], edited

    plain = made.pipe(**settings, generator=seeded())
    handle = block.register_forward_hook(change)
    try:
        expected = made.pipe(**settings, generator=seeded())
    finally:
        handle.remove()
    branch = ("cond", "perturbed", "isolated")[number]
    site = Site("blocks.0.audio.hook_resid_post", branch=branch)
    out = model.run_with_hooks(**settings, fwd_hooks=[(site, lambda value, _hook: value * 0.5)])
    assert len(ran) == 9
    assert torch.equal(out.frames, expected.frames)
    assert torch.equal(out.audio, expected.audio)
    assert not torch.equal(out.audio, plain.audio)


@pytest.mark.parametrize(
    "name",
    [
        "blocks.1.audio_to_video_attn.hook_pattern",
        "blocks.1.audio.hook_video_to_audio_attn_update",
        "blocks.0.img.hook_resid_mid_cross",
        "native:transformer_blocks.0.audio_to_video_attn",
        "blocks.*.audio.*",
    ],
)
@slow
def test_what_does_not_run_in_an_isolated_prediction_is_refused(name: str) -> None:
    made = tiny_video("ltx2")
    model, settings = HookedDiffusion(made.pipe), made.settings | ISOLATED
    message = (
        r"does not run in branch 'isolated' of step 0, where isolate_modalities= leaves out "
        r"audio_to_video_norm.*branch='cond'"
    )
    with pytest.raises(EngineError, match=message):
        model.run_with_hooks(**settings, fwd_hooks=[(name, lambda value, hook: None)])
    seen = []
    hook = (Site(name, branch="cond"), lambda _value, hook: seen.append(hook.branch))
    model.run_with_hooks(**settings, fwd_hooks=[hook])
    assert set(seen) == {"cond"} and len(seen) >= 3


def test_a_prediction_of_two_kinds_has_no_name() -> None:
    made, given = tiny_video("ltx2"), once(tiny_video("ltx2"))
    model = HookedDiffusion(made.pipe.transformer)
    both = given | {"isolate_modalities": True, "spatio_temporal_guidance_blocks": [0]}
    with (
        torch.no_grad(),
        model.hooks([("hook_noise_pred", lambda value, hook: None)]),
        pytest.raises(EngineError, match=r"blocks= and isolate_modalities= is .* at once"),
    ):
        model.denoiser(**both)


@slow
def test_words_lie_in_front_in_the_texts_of_video_and_sound() -> None:
    made = tiny_video("ltx2")
    model = HookedDiffusion(made.pipe)
    rows = {}
    for word, other in {"red": "blue", "table": "bird", "x": "q"}.items():
        prompt = f"  {PROMPT} x cat "
        first, second = (
            once(made, prompt=one, **OFF) for one in (prompt, prompt.replace(word, other))
        )
        for name in ("encoder_hidden_states", "audio_encoder_hidden_states"):
            changed = (first[name] != second[name]).any(-1)[0].nonzero().flatten().tolist()
            assert model.words(prompt, word, max_sequence_length=24) == tuple(changed)
            rows[word] = changed
    assert rows["red"] == [2] and rows["table"] == [7]  # behind a start mark
    assert once(made, **OFF)["encoder_attention_mask"].all()


@slow
def test_prompts_of_one_batch_have_their_words_in_front_each() -> None:
    made, found = tiny_video("ltx2"), {}
    model = HookedDiffusion(made.pipe)
    prompts = [PROMPT, f"{PROMPT} and a small bird"]
    settings = made.settings | {"prompt": prompts, "negative_prompt": [NEGATIVE] * 2}

    def note(value: Tensor, hook: Any) -> None:
        found[hook.branch] = (value.clone(), dict(hook.words))

    model.run_with_hooks(**settings, seed=[0, 1], fwd_hooks=[("hook_text_emb", note)])
    both, words = found["cond"]
    assert words["table"] == (7,)
    for row, prompt in zip(both, prompts, strict=True):
        alone = once(made, prompt=prompt, **OFF)["encoder_hidden_states"][0]
        torch.testing.assert_close(row, alone)


@slow
def test_words_of_prompts_with_each_others_masks_are_refused() -> None:
    made = tiny_video("ltx2")
    longer, more = f"{PROMPT} and a small bird", OFF | {"num_videos_per_prompt": 2}
    alone = once(made, prompt=PROMPT, **OFF)["encoder_hidden_states"][0]
    given: dict[str, Any] = {"prompt": [PROMPT, longer], "negative_prompt": [NEGATIVE] * 2}
    rows = once(made, **given, **more)["encoder_hidden_states"]
    assert [torch.allclose(row, alone) for row in rows] == [True, False, False, False]
    settings = made.settings | more | given | {"seed": [0, 1, 2, 3]}
    model, found = HookedDiffusion(made.pipe), []
    hook = (Site("hook_text_emb", branch="cond"), lambda _value, hook: found.append(hook.words))
    site = Site("blocks.0.cross_attn.hook_pattern", key=("txt", "cat"), branch="cond")
    with pytest.raises(WordError, match="each other's masks"):
        model.run_with_hooks(**settings, fwd_hooks=[(site, lambda value, hook: None)])
    model.run_with_hooks(**settings, fwd_hooks=[hook])
    assert found == [{}] * 3
    settings["prompt"] = [PROMPT, PROMPT.replace("cat", "dog")]
    model.run_with_hooks(**settings, fwd_hooks=[hook])
    assert found[3]["red"] == (2,)


@slow
def test_words_behind_padding_that_stays_are_refused() -> None:
    from tests.tiny_videos import ltx2

    made = fresh_video(ltx2.ltx2)
    made.pipe.connectors = ltx2.connectors(registers=None)
    first, second = (
        once(made, prompt=one, **OFF)["encoder_hidden_states"]
        for one in (PROMPT, PROMPT.replace("red", "blue"))
    )
    assert (first != second).any(-1)[0].nonzero().flatten().tolist() == [24 - 8 + 2]
    model = HookedDiffusion(made.pipe)
    with pytest.raises(WordError, match="its video connector has no registers"):
        model.words(PROMPT, "red")


def test_words_of_a_prompt_that_is_written_anew_are_refused() -> None:
    model = HookedDiffusion(tiny_video("ltx2").pipe)
    run = Run(PROMPT, enable_prompt_enhancement=True)
    with pytest.raises(WordError, match="writes the prompt anew"):
        model.prompt_tokens(PROMPT, run=run)


@slow
def test_the_sound_is_in_the_result() -> None:
    made = tiny_video("ltx2")
    model, sizes = HookedDiffusion(made.pipe), {}

    def note(value: Tensor, hook: Any) -> None:
        sizes[hook.name.removeprefix("blocks.0.")] = tuple(value.shape[-2:])

    patterns = ["audio_attn", "audio_cross_attn", "audio_to_video_attn", "video_to_audio_attn"]
    hooks = [(f"blocks.0.{name}.hook_pattern", note) for name in patterns]
    out = model.run_with_hooks(**made.settings, fwd_hooks=hooks)
    expected = made.pipe(**made.settings, generator=seeded())
    assert torch.equal(out.audio, expected.audio) and out.audio.shape == (1, 2, 7, 2)
    tokens = once(made)["audio_hidden_states"].shape[1]
    assert tokens == 7
    assert list(sizes.values()) == [(7, 7), (7, 24), (18, 7), (7, 18)]
    decoded = model(**made.settings | {"output_type": "pt"})
    assert decoded.audio.shape[:2] == (1, 2) and decoded.latents.shape == (1, 18, 4)


@slow
def test_a_single_evaluation_is_refused_and_whole_runs_are_patched() -> None:
    made = tiny_video("ltx2")
    model = HookedDiffusion(made.pipe)
    settings = {key: one for key, one in made.settings.items() if key != "prompt"} | OFF
    latents = latents_of(model(**made.settings))
    with pytest.raises(RunError, match=r"denoises something beside the image"):
        model.denoise(latents, prompt=PROMPT, step=0, **settings)
    given: dict[str, Any] = {"sites": ["blocks.0.img.hook_resid_post"], "show_progress": False}
    other = PROMPT.replace("cat", "dog")
    for patching in (activation_patching, attribution_patching):
        with pytest.raises(PatchingError, match=r"latents that single evaluations lack.*'window'"):
            patching(model, PROMPT, other, **given, **settings)


@slow
def test_a_given_frame_is_read_as_it_is() -> None:
    made = fresh_video(ltx2_image)
    model, seen = HookedDiffusion(made.pipe), {}
    settings = made.settings | PERTURBED | ISOLATED | {"output_type": "pt"}
    expected = made.pipe(**settings, generator=seeded())

    def note(_value: Tensor, hook: Any) -> None:
        seen.setdefault(hook.name, []).append(hook.timestep)
        assert hook.grid == made.grid

    hooked = model.run_with_hooks(**settings, fwd_hooks=[(Site("**", branch="cond"), note)])
    assert torch.equal(hooked.frames, expected.frames)
    assert torch.equal(hooked.audio, expected.audio)
    assert set(model.points) - set(seen) == {"hook_timestep_emb"}  # one for each token
    assert sorted(set(seen["hook_latents"])) == sorted(made.pipe.scheduler.timesteps.tolist())
    _, cache = model.run_with_cache(**settings, names_filter="hook_text_emb", branch="all")
    assert list(cache.branches) == ["uncond", "cond", "perturbed", "isolated"]
