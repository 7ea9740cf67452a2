"""Video families in the pipelines that people run, at random weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lens import HookedDiffusion, Site
from diffusion_lens.architectures import registry
from diffusion_lens.architectures.spec import ModulePoint
from diffusion_lens.architectures.wan import WAN
from diffusion_lens.errors import (
    EngineError,
    HookNeverFiredError,
    RunError,
    UnsupportedModelError,
    WordError,
)
from diffusion_lens.testing import check_architecture, tiny_denoiser
from diffusion_lens.testing.report import CLAUSES
from tests.pipelines import latents_of, traces
from tests.tiny_videos import TINY_VIDEOS, TinyVideo, tiny_video
from tests.tiny_videos.families import (
    NEGATIVE,
    PROMPT,
    fresh_video,
    hunyuan_video_15,
    wan_ti2v,
    wan_two,
)

FAMILIES = [
    name if name == "wan" else pytest.param(name, marks=pytest.mark.slow) for name in TINY_VIDEOS
]
every_family = pytest.mark.parametrize("family", FAMILIES)


def seeded() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(0)]


@contextlib.contextmanager
def unguided(made: TinyVideo) -> Iterator[dict[str, Any]]:
    """Settings without guidance, while a guider is off."""
    guider = getattr(made.pipe, "guider", None)
    if guider is not None:
        guider.disable()
    try:
        yield made.settings | made.unguided
    finally:
        if guider is not None:
            guider.enable()


def first_call(made: TinyVideo, **changes: Any) -> dict[str, Any]:
    """The denoiser's arguments in the first call of a run without guidance, without the library."""
    found: dict[str, Any] = {}

    def keep(_module: Any, _args: tuple, kwargs: dict) -> None:
        found.update({} if found else kwargs)

    handle = made.pipe.transformer.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with unguided(made) as settings:
            made.pipe(**{**settings, "num_inference_steps": 1, **changes, "generator": seeded()})
    finally:
        handle.remove()
    return found


@every_family
def test_reading_every_point_changes_nothing(family: str) -> None:
    made = tiny_video(family)
    model = HookedDiffusion(made.pipe)
    expected = made.pipe(**made.settings, generator=seeded()).frames
    before = traces(made.pipe)  # some text and image encoders put on hooks of their own
    plain = latents_of(model(**made.settings))
    read = set()

    def note(value: Tensor, hook: Any) -> None:
        assert not value.isnan().any()
        read.add(hook.name)

    hooked = latents_of(model.run_with_hooks(**made.settings, fwd_hooks=[("**", note)]))
    assert torch.equal(plain, expected) and torch.equal(hooked, expected)
    lacks = {"hook_timestep_emb"} if "ti2v" in family else set()  # it has one for each token
    assert read == set(model.points) - lacks
    assert traces(made.pipe) == before


@every_family
def test_branches_hold_the_prompt_and_the_negative_prompt(family: str) -> None:
    made = tiny_video(family)
    model, name = HookedDiffusion(made.pipe), "hook_text_emb"
    _, cache = model.run_with_cache(**made.settings, names_filter=name, branch="all")
    prompt, negative = (
        first_call(made, prompt=text)[model.spec.text] for text in (PROMPT, NEGATIVE)
    )
    assert not torch.equal(prompt, negative)
    for step in range(made.settings["num_inference_steps"]):
        assert torch.equal(cache.cond[name][step], prompt)
        assert torch.equal(cache.uncond[name][step], negative)
    with unguided(made) as settings:
        _, cache = model.run_with_cache(**settings, names_filter=name, branch="all")
    assert set(cache.branches) == {"cond"}
    assert torch.equal(cache.cond[name][0], prompt)


@every_family
def test_a_hook_knows_the_schedulers_timestep_and_the_grid(family: str) -> None:
    made = tiny_video(family)
    model = HookedDiffusion(made.pipe)
    timesteps: list[float] = []
    sizes: list[int] = []

    def note(value: Tensor, hook: Any) -> None:
        timesteps.append(hook.timestep)
        sizes.append(value.shape[1])
        assert hook.grid == made.grid

    site = Site("blocks.0.img.hook_resid_pre", branch="cond")
    model.run_with_hooks(**made.settings, fwd_hooks=[(site, note)])
    assert timesteps == made.pipe.scheduler.timesteps.tolist()
    assert set(sizes) == {math.prod(made.grid)}


@every_family
def test_a_token_of_the_image_lies_where_the_grid_says(family: str) -> None:
    made = tiny_video(family)
    model, name = HookedDiffusion(made.pipe), "blocks.0.img.hook_resid_pre"
    axes = model.points["hook_latents"].axes
    given = first_call(made)
    frames, height, width = made.grid

    def rows(latents: Tensor) -> Tensor:
        with model.caching(name, branches=("cond",)) as cache, torch.no_grad():
            model.denoiser(**{**given, "hidden_states": latents})
        return cache[name][0]

    place = (frames - 1, 1, width - 1)
    latents = given["hidden_states"].clone()
    if "frame" in axes:
        sides = [latents.shape[axes.index(axis)] for axis in ("frame", "height", "width")]
        at: list[Any] = [slice(None)] * latents.ndim
        for axis, index, size, side in zip(
            ("frame", "height", "width"), place, made.grid, sides, strict=True
        ):
            at[axes.index(axis)] = slice(index * side // size, (index + 1) * side // size)
    else:
        tokens = torch.arange(latents.shape[1]).reshape(made.grid)
        at = [slice(None), int(tokens[place])]
    latents[tuple(at)] += 1.0
    changed = (rows(latents) != rows(given["hidden_states"])).any(-1)[0]
    assert changed.nonzero().flatten().tolist() == [
        (place[0] * height + place[1]) * width + place[2]
    ]


@every_family
def test_words_are_the_rows_that_change_with_them(family: str) -> None:
    made = tiny_video(family)
    if not made.words:
        pytest.skip("its words cannot be told")
    model = HookedDiffusion(made.pipe)
    length = made.settings.get("max_sequence_length")
    for prompt in (PROMPT, "  a red  cat &amp; the\n small table "):
        text = first_call(made, prompt=prompt)[model.spec.text]
        for word, other in {"red": "blue", "cat": "dog", "table": "street"}.items():
            swapped = first_call(made, prompt=prompt.replace(word, other))[model.spec.text]
            rows = (text != swapped).any(-1)[0].nonzero().flatten().tolist()
            assert rows and model.words(prompt, word, max_sequence_length=length) == tuple(rows)


@every_family
def test_words_in_a_run_are_those_of_the_branch(family: str) -> None:
    made = tiny_video(family)
    if not made.words:
        pytest.skip("its words cannot be told")
    model, found = HookedDiffusion(made.pipe), {}
    length = made.settings.get("max_sequence_length")

    def note(_value: Tensor, hook: Any) -> None:
        found[hook.branch] = hook.words

    model.run_with_hooks(**made.settings, fwd_hooks=[("hook_text_emb", note)])
    for branch, prompt in {"cond": PROMPT, "uncond": NEGATIVE}.items():
        assert list(found[branch]) == prompt.split()
        for word, places in found[branch].items():
            assert places == model.words(prompt, word, max_sequence_length=length)


@every_family
def test_the_text_that_is_attended_to_is_the_blocks_own(family: str) -> None:
    made = tiny_video(family)
    model, lengths = HookedDiffusion(made.pipe), {}
    block = model.points["blocks.0.img.hook_resid_pre"].module

    def of_block(_module: Any, args: tuple, kwargs: dict) -> None:
        text = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
        lengths["block"] = text.shape[1]

    def of_hook(value: Tensor, hook: Any) -> None:
        lengths["hook"] = value.shape[-1]

    handle = model.denoiser.get_submodule(block).register_forward_pre_hook(
        of_block, with_kwargs=True
    )
    site = Site(model.text_pattern_sites()[0].name, query="img", key="txt", branch="cond")
    try:
        model.run_with_hooks(**made.settings, fwd_hooks=[(site, of_hook)])
    finally:
        handle.remove()
    image = made.pipe.transformer.config.get("image_dim") and 5
    assert lengths["hook"] == lengths["block"] - (image or 0)


@every_family
def test_one_evaluation_is_the_runs_own(family: str) -> None:
    made = tiny_video(family)
    model = HookedDiffusion(made.pipe)
    names = ["hook_sample", "hook_guided_pred", "hook_noise_pred"]
    _, cache = model.run_with_cache(names_filter=names, branch="all", **made.settings)
    settings = {key: value for key, value in made.settings.items() if key != "output_type"}
    for step in range(made.settings["num_inference_steps"]):
        prediction = model.denoise(cache.at(step=step)["hook_sample"], step=step, **settings)
        assert torch.equal(prediction.cond, cache.cond["hook_noise_pred"][step])
        assert torch.equal(prediction.uncond, cache.uncond["hook_noise_pred"][step])
        assert torch.equal(prediction.guided, cache.at(step=step)["hook_guided_pred"])


@every_family
def test_decoded_latents_are_the_pipelines_own_video(family: str) -> None:
    made = tiny_video(family)
    model = HookedDiffusion(made.pipe)
    latents = latents_of(model(**made.settings))
    expected = model(**{**made.settings, "output_type": "pt"}).frames
    height, width = made.size
    found = model.decode_latents(latents, output_type="pt", height=height, width=width)
    rounding = 1e-5 if family == "consisid" else 0.0  # it multiplies by 1 over the factor
    torch.testing.assert_close(found, expected, rtol=0.0, atol=rounding)
    assert found.shape[1:] == (made.frames, 3, height, width)


@every_family
def test_frames_become_latents_as_the_loop_holds_them(family: str) -> None:
    made = tiny_video(family)
    model = HookedDiffusion(made.pipe)
    video = torch.rand(made.frames, 3, *made.size, generator=seeded()[0])
    latents = model.encode_image(list(video))
    _, cache = model.run_with_cache(**made.settings, names_filter="hook_sample")
    assert latents.shape == cache["hook_sample"][0].shape


@pytest.mark.slow
def test_an_encoded_frame_is_wans_own() -> None:
    made = tiny_video("wan_ti2v_image")
    image = torch.rand(1, 3, *made.size, generator=seeded()[0])
    _, expected, _ = made.pipe.prepare_latents(
        image * 2 - 1, 1, 4, *made.size, 9, torch.float32, torch.device("cpu"), seeded()
    )
    assert torch.equal(HookedDiffusion(made.pipe).encode_image(image), expected)


@pytest.mark.slow
def test_an_encoded_frame_is_ltx_videos_own() -> None:
    from diffusers import LTXImageToVideoPipeline

    made = tiny_video("ltx_video")
    pipe = LTXImageToVideoPipeline(**made.pipe.components)
    image = torch.rand(1, 3, *made.size, generator=seeded()[0])
    held, _ = pipe.prepare_latents(
        image * 2 - 1, 1, 4, *made.size, 17, torch.float32, torch.device("cpu"), seeded()
    )
    one = math.prod(made.grid[1:])
    assert torch.equal(HookedDiffusion(made.pipe).encode_image(image, seed=0), held[:, :one])


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


def test_an_embedding_of_each_tokens_timestep_is_not_taken_for_the_one() -> None:
    made, name = fresh_video(wan_ti2v), "hook_timestep_emb"
    model = HookedDiffusion(made.pipe)
    message = f"never fired at {name}.* shape .1, 18, 32., which are not the axes .*d_emb"
    with pytest.raises(HookNeverFiredError, match=message):
        model.run_with_cache(**made.settings, names_filter=name)
    native = "native:condition_embedder.time_embedder"
    _, cache = model.run_with_cache(**made.settings, names_filter=["hook_*", native])
    assert name not in cache and cache[native][0].shape == (1, 18, 32)


@pytest.mark.slow
def test_a_timestep_for_each_token_keeps_the_rest_of_the_contract(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lacking(denoiser: Any) -> tuple[ModulePoint, ...]:
        return tuple(point for point in WAN.outside(denoiser) if point.name != "hook_timestep_emb")

    monkeypatch.setitem(registry._REGISTERED, WAN.denoiser, replace(WAN, outside=lacking))
    denoiser, inputs = tiny_denoiser("wan")
    tokens = inputs["hidden_states"][:, 0, :, ::2, ::2].flatten(1)
    timestep = torch.full_like(tokens, 500)
    timestep[:, : tokens.shape[1] // 2] = 0
    report = check_architecture(denoiser, inputs | {"timestep": timestep})
    assert set(report.checked) == set(CLAUSES) and report.skipped == ()


@pytest.mark.slow
def test_an_image_is_attended_to_beside_the_text() -> None:
    made, sizes = tiny_video("wan_i2v"), {}
    model = HookedDiffusion(made.pipe)

    def note(value: Tensor, hook: Any) -> None:
        sizes[hook.name.removeprefix("blocks.0.cross_attn.")] = value.shape[-1]

    names = ["hook_pattern", "ip.hook_pattern"]
    hooks = [(f"blocks.0.cross_attn.{name}", note) for name in names]
    model.run_with_hooks(**made.settings, fwd_hooks=hooks)
    assert sizes == {"hook_pattern": 512, "ip.hook_pattern": 5}
    with pytest.raises(EngineError, match="510 text tokens go with 5 of an image.*=512"):
        model.run_with_hooks(**made.settings | {"max_sequence_length": 510}, fwd_hooks=hooks[:1])


@pytest.mark.slow
def test_words_of_a_chat_that_is_not_the_classs_own_are_refused() -> None:
    made, found = tiny_video("hunyuan_video"), []
    model = HookedDiffusion(made.pipe)
    hook = (Site("hook_text_emb", branch="cond"), lambda _value, hook: found.append(hook.words))
    template = {"template": "{}", "crop_start": 0}
    with pytest.raises(WordError, match="given another prompt_template= than the class's own"):
        model.run_with_hooks(**made.settings, prompt_template=template, fwd_hooks=[hook])
    made.pipe.tokenizer.padding_side = "left"
    try:
        with pytest.raises(WordError, match="pads on the left.*padding_side = .right"):
            model.words(PROMPT, "cat")
    finally:
        made.pipe.tokenizer.padding_side = "right"
    assert not found and model.words(PROMPT, "cat")


@pytest.mark.slow
def test_words_in_a_stream_of_three_kinds_of_text_are_refused() -> None:
    made = tiny_video("hunyuan_video_15")
    model = HookedDiffusion(made.pipe)
    with pytest.raises(WordError, match="HunyuanVideo15Pipeline: its text stream joins an image"):
        model.words(PROMPT, "cat")
    site = Site(model.text_pattern_sites()[0].name, key="cat")
    with pytest.raises(WordError, match="cannot be told"):
        model.run_with_hooks(**made.settings, fwd_hooks=[(site, lambda _value, hook: None)])


@pytest.mark.slow
def test_a_guiders_further_evaluations_are_refused() -> None:
    from diffusers.guiders import ClassifierFreeGuidance

    class Skipping(ClassifierFreeGuidance):
        """Names its evaluations as skip-layer guidance does, which does not know these blocks."""

        _input_predictions = ("pred_cond", "pred_cond_skip")

    made = fresh_video(hunyuan_video_15)
    made.pipe.guider = Skipping()
    model = HookedDiffusion(made.pipe)
    with pytest.raises(EngineError, match="names an evaluation of its denoiser 'cond_skip', known"):
        model.run_with_cache(**made.settings, names_filter="hook_text_emb")


@pytest.mark.slow
def test_packed_videos_need_their_size() -> None:
    made = tiny_video("ltx_video")
    model = HookedDiffusion(made.pipe)
    latents = latents_of(model(**made.settings))
    with pytest.raises(RunError, match="of 18 tokens do not make frames of None x None pixels"):
        model.decode_latents(latents)
    with pytest.raises(RunError, match=r"7 frames were given; .* give 1 or 9"):
        model.encode_image(list(torch.rand(7, 3, *made.size)))


@pytest.mark.slow
def test_the_context_of_cross_attention_is_the_text_without_the_image() -> None:
    made, name = tiny_video("wan_i2v"), "blocks.0.cross_attn.hook_context"
    model, found = HookedDiffusion(made.pipe), {}
    for prompt in (PROMPT, PROMPT.replace("cat", "dog")):
        settings = made.settings | {"prompt": prompt, "num_inference_steps": 1}
        out, cache = model.run_with_cache(**settings, names_filter=name)
        found[prompt] = cache[name][0]
    first, second = found.values()
    rows = (first != second).any(-1)[0].nonzero().flatten().tolist()
    assert first.shape == (1, 512, 32) and model.words(PROMPT, "cat") == tuple(rows)
    back = [
        (
            "blocks.*.cross_attn.hook_context",
            lambda value, hook: found[PROMPT] if hook.branch == "cond" else None,
        )
    ]
    patched = latents_of(model.run_with_hooks(**settings, fwd_hooks=back))
    del settings["prompt"]
    assert not torch.equal(patched, latents_of(out))
    assert torch.equal(patched, latents_of(model(PROMPT, **settings)))
