"""Video families in the pipelines that people run, at random weights."""

# diffusers and transformers annotate more narrowly than they take.
# pyright: reportArgumentType=false, reportOptionalMemberAccess=false

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lens import HookedDiffusion, Site
from tests.pipelines import latents_of, traces
from tests.tiny_videos.families import TINY_VIDEOS, tiny_video
from tests.tiny_videos.settings import NEGATIVE, PROMPT, TinyVideo

MARKS: dict[str, Any] = {
    "wan": (),
    "ltx_video": pytest.mark.slow,
    "hunyuan_video": pytest.mark.slow,
    "kandinsky5": pytest.mark.slow,
    "ltx2": pytest.mark.slow,
}
"""When a family's tests run; the others are `exhaustive`."""

FAMILIES = [
    pytest.param(name, marks=MARKS.get(name, pytest.mark.exhaustive)) for name in TINY_VIDEOS
]
every_family = pytest.mark.parametrize("family", FAMILIES)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


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


def bound(module: Any, args: tuple, kwargs: dict) -> dict[str, Any]:
    """The arguments of a module's forward by name."""
    names = list(inspect.signature(type(module).forward).parameters)[1:]
    return dict(zip(names, args, strict=False)) | kwargs


def first_call(made: TinyVideo, **changes: Any) -> dict[str, Any]:
    """The denoiser's arguments in the first call of a run without guidance, without the library."""
    found: dict[str, Any] = {}

    def keep(module: Any, args: tuple, kwargs: dict) -> None:
        found.update({} if found else bound(module, args, kwargs))

    handle = made.pipe.transformer.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with unguided(made) as settings:
            short = {"num_inference_steps": made.fewest, **changes, "generator": seeded()}
            made.pipe(**{**settings, **short})
    finally:
        handle.remove()
    return found


def differing(one: Tensor, other: Tensor) -> list[int]:
    """The rows in which texts of one sample differ."""
    return (one != other).any(-1).flatten().nonzero().flatten().tolist()


@every_family
def test_reading_every_point_changes_nothing(family: str) -> None:
    made = tiny_video(family)
    model = HookedDiffusion(made.pipe)
    # These give other latents than their loops hold.
    other = family in ("wan_animate", "ltx2")
    settings = made.settings | ({"output_type": "pt"} if other else {})
    expected = made.pipe(**settings, generator=seeded()).frames
    before = traces(made.pipe)  # some text and image encoders put on hooks of their own
    plain = model(**settings)
    read = set()

    def note(value: Tensor, hook: Any) -> None:
        assert not value.isnan().any()
        read.add(hook.name)

    hooked = model.run_with_hooks(**settings, fwd_hooks=[("**", note)])
    for out in (plain, hooked):
        assert torch.equal(latents_of(out) if out.frames is None else out.frames, expected)
    several = "ti2v" in family or family == "cosmos25"  # embeddings: for each token or frame
    lacks = {"hook_timestep_emb"} if several else set()
    assert read == set(model.points) - lacks
    assert traces(made.pipe) == before


@every_family
def test_branches_hold_the_prompt_and_the_negative_prompt(family: str) -> None:
    made = tiny_video(family)
    model, name = HookedDiffusion(made.pipe), "hook_text_emb"
    _, cache = model.run_with_cache(**made.settings, names_filter=name, branch="all")
    prompt, negative = (
        first_call(made, prompt=text, **more)[model.spec.text]
        for text, more in ((PROMPT, {}), (NEGATIVE, made.as_negative))
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
            rows = differing(text, swapped)
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
        negative = branch == "uncond"
        tokens = model.prompt_tokens(prompt, max_sequence_length=length, negative=negative)
        assert found[branch] == {word: tokens.find(word) for word in prompt.split()}
    text, swapped = (
        first_call(made, prompt=prompt, **made.as_negative)[model.spec.text]
        for prompt in (NEGATIVE, NEGATIVE.replace("video", "glass"))
    )
    rows = differing(text, swapped)
    assert found["uncond"]["video"] == tuple(rows)


@every_family
def test_the_text_that_is_attended_to_is_the_blocks_own(family: str) -> None:
    made = tiny_video(family)
    model, lengths = HookedDiffusion(made.pipe), {}
    block = model.points["blocks.0.img.hook_resid_pre"].module

    def of_block(module: Any, args: tuple, kwargs: dict) -> None:
        names = ("encoder_hidden_states", "text_embed")
        given = bound(module, args, kwargs)
        text = next(given[name] for name in names if name in given)
        lengths.setdefault("block", text.shape[1])  # of the branch that comes first

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
    if model.spec.further:
        pytest.skip("its denoiser makes sound, too, so that single evaluations are refused")
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
    latents = latents[:, :, made.before :] if made.before else latents
    found = model.decode_latents(latents, output_type="pt", height=height, width=width)
    inverse = (
        "consisid",
        "easy_animate",
        "allegro",
        "motif_video",
    )  # which multiply by 1 over the factor
    rounding = 1e-5 if family in inverse else 0.0
    torch.testing.assert_close(found, expected, rtol=0.0, atol=rounding)
    assert found.shape[1:] == (made.frames, 3, height, width)


@every_family
def test_frames_become_latents_as_the_loop_holds_them(family: str) -> None:
    made = tiny_video(family)
    model = HookedDiffusion(made.pipe)
    video = torch.rand(made.frames, 3, *made.size, generator=seeded())
    latents = model.encode_image(list(video))
    _, cache = model.run_with_cache(**made.settings, names_filter="hook_sample")
    own = cache["hook_sample"][0]
    assert latents.shape == (own[:, :, made.before :] if made.before else own).shape


@pytest.mark.slow
def test_an_encoded_frame_is_wans_own() -> None:
    made = tiny_video("wan_ti2v_image")
    image = torch.rand(1, 3, *made.size, generator=seeded())
    _, expected, _ = made.pipe.prepare_latents(
        image * 2 - 1, 1, 4, *made.size, 9, torch.float32, torch.device("cpu"), seeded()
    )
    assert torch.equal(HookedDiffusion(made.pipe).encode_image(image), expected)


@pytest.mark.slow
def test_an_encoded_frame_is_ltx_videos_own() -> None:
    from diffusers import LTXImageToVideoPipeline

    made = tiny_video("ltx_video")
    pipe = LTXImageToVideoPipeline(**made.pipe.components)
    image = torch.rand(1, 3, *made.size, generator=seeded())
    held, _ = pipe.prepare_latents(
        image * 2 - 1, 1, 4, *made.size, 17, torch.float32, torch.device("cpu"), seeded()
    )
    one = math.prod(made.grid[1:])
    assert torch.equal(HookedDiffusion(made.pipe).encode_image(image, seed=0), held[:, :one])
