"""JoyImage-Edit and Edit Plus with given images: what is the image's own, what is refused."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from diffusion_lens import HookedDiffusion, Run, Site
from diffusion_lens.analyses import activation_patching, attention_maps
from diffusion_lens.errors import ConceptError, RunError, WordError
from diffusion_lens.testing import check_pipeline
from tests.tiny_pipelines import tiny_pipeline
from tests.tiny_pipelines.families import HEIGHT, SIZE, WIDTH

pytestmark = [pytest.mark.exhaustive, pytest.mark.filterwarnings("ignore")]
PROMPT, OTHER = "a red cat on the glass table", "a red dog on the glass table"
OWN = HEIGHT * WIDTH


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 255, (height, width, 3), generator=generator)
    return Image.fromarray(pixels.to(torch.uint8).numpy())


SHORT: dict[str, Any] = {
    "num_inference_steps": 2,
    "output_type": "pt",
    "height": SIZE[0],
    "width": SIZE[1],
    "guidance_scale": 4.0,
}
EDIT, PLUS = "joy_image_edit", "joy_image_edit_plus"
GIVEN: dict[str, tuple[str, dict[str, Any], int]] = {
    "edit": (EDIT, {"image": picture(*SIZE)}, OWN),
    "plus": (PLUS, {"images": [picture(8, 16)]}, 2 * 4),
    "plus of two": (PLUS, {"images": [picture(8, 16), picture(20, 12)]}, 2 * 4 + 5 * 3),
}
"""The pipeline, the images that it is given, and how many tokens these have."""

every = pytest.mark.parametrize("case", GIVEN)


@functools.cache
def shared(case: str) -> HookedDiffusion:
    return HookedDiffusion(tiny_pipeline(GIVEN[case][0]))


def settings(case: str, **more: Any) -> dict[str, Any]:
    return {**SHORT, **GIVEN[case][1], **more}


def drawn(run: Callable[..., Any], *args: Any, **more: Any) -> Any:
    """With torch's own generator set back, from which Edit draws its reference's latents."""
    torch.manual_seed(5)
    return run(*args, **more)


@every
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_read_only_hooks_change_nothing_and_every_point_fires(
    case: str, guidance_scale: float
) -> None:
    model, fired = shared(case), set()
    pipe: Any = model.pipe
    given = settings(case, guidance_scale=guidance_scale)
    generator = [torch.Generator().manual_seed(0)]
    expected = drawn(pipe, prompt=PROMPT, generator=generator, **given)[0]
    hooks = [("**", lambda _value, hook: fired.add(hook.name))]
    out = drawn(model.run_with_hooks, PROMPT, seed=0, fwd_hooks=hooks, **given)
    assert torch.equal(out.images, expected)
    assert fired == set(model.points)


@every
def test_the_grid_is_the_images_own_and_references_come_behind(case: str) -> None:
    model, seen = shared(case), []

    def see(value: Tensor, hook: Any) -> None:
        seen.append((tuple(hook.grid), value.shape[1], hook.branch, hook.timestep))

    sites = [Site("blocks.0.img.hook_resid_pre", branch=branch) for branch in ("cond", "uncond")]
    model.run_with_hooks(PROMPT, fwd_hooks=[(site, see) for site in sites], **settings(case))
    grids, tokens, branches, timesteps = zip(*seen, strict=True)
    assert set(grids) == {(1, HEIGHT, WIDTH)}
    assert set(tokens) == {OWN + GIVEN[case][2]}
    assert sorted(branches) == ["cond", "cond", "uncond", "uncond"]
    pipe: Any = model.pipe
    assert sorted(set(timesteps)) == pytest.approx(sorted(pipe.scheduler.timesteps.tolist()))


@every
def test_each_branch_has_the_prediction_of_its_own_prompt(case: str) -> None:
    model, found = shared(case), {}
    for branch in ("cond", "uncond"):
        site = Site("hook_noise_pred", branch=branch, steps=0)
        given = settings(case, negative_prompt=OTHER)
        _, cache = drawn(model.run_with_cache, PROMPT, names_filter=[site], seed=0, **given)
        found[branch] = cache.at(step=0)["hook_noise_pred"]
    for branch, prompt in (("cond", PROMPT), ("uncond", OTHER)):
        alone = settings(case, guidance_scale=1.0)
        names = [Site("hook_noise_pred", steps=0)]
        _, cache = drawn(model.run_with_cache, prompt, names_filter=names, seed=0, **alone)
        expected = cache.at(step=0)["hook_noise_pred"]
        torch.testing.assert_close(found[branch], expected, rtol=1e-4, atol=1e-4)
    assert (found["cond"] - found["uncond"]).abs().max() > 1e-3


def first_residual(case: str, **more: Any) -> Tensor:
    site = Site("blocks.0.img.hook_resid_pre", branch="cond", steps=0)
    given = settings(case, **more)
    _, cache = drawn(shared(case).run_with_cache, PROMPT, names_filter=[site], seed=0, **given)
    return cache.at(step=0)[site.name][0]


@every
def test_another_reference_moves_only_tokens_behind_the_image(case: str) -> None:
    name, given, references = GIVEN[case]
    image = next(iter(given.values()))
    sizes = [one.size for one in (image if isinstance(image, list) else [image])]
    others = [picture(height, width, seed=1) for width, height in sizes]
    changed = {"image": others[0]} if name == EDIT else {"images": others}
    moved = (first_residual(case) != first_residual(case, **changed)).any(-1)
    assert moved.nonzero().flatten().tolist() == list(range(OWN, OWN + references))


def own_part(case: str, latents: Tensor) -> Tensor:
    """What the pipeline takes for latents: Edit those of the image alone, which is the last."""
    return latents[:, -1:] if GIVEN[case][0] == EDIT else latents


@every
def test_the_latents_place_is_the_token_of_its_row_and_column(case: str) -> None:
    model, row, column, found = shared(case), 2, 1, []
    site = Site("blocks.0.img.hook_resid_pre", branch="cond")
    start = model(PROMPT, **settings(case)).latents
    assert start is not None
    for change in (0.0, 5.0):
        latents = own_part(case, start).clone()
        if GIVEN[case][0] == EDIT:
            latents[..., 2 * row, 2 * column] += change
        else:
            latents[:, row * WIDTH + column] += change
        with model.caching(site) as cache:
            drawn(model.denoise, latents, prompt=PROMPT, step=0, **settings(case))
        found.append(cache.at(step=0)[site.name][0])
    moved = (found[1] != found[0]).any(-1).nonzero().flatten().tolist()
    assert moved == [row * WIDTH + column]


@every
def test_one_evaluation_is_the_runs_own(case: str) -> None:
    model, given = shared(case), settings(case)
    names = ["hook_sample", "hook_guided_pred"]
    _, cache = drawn(model.run_with_cache, PROMPT, names_filter=names, seed=0, **given)
    for step in (0, 1):
        at = cache.at(step=step)
        latents = own_part(case, at["hook_sample"])
        found = drawn(model.denoise, latents, prompt=PROMPT, step=step, seed=0, **given)
        assert torch.equal(found.guided, at["hook_guided_pred"])


def test_latents_with_the_references_of_edit_are_refused() -> None:
    model, given = shared("edit"), settings("edit")
    latents = model(PROMPT, **given).latents
    assert latents is not None and latents.shape[1] == 2
    with pytest.raises(RunError, match=r"latents of shape \(1, 2, .* the pipeline needs \(1, 1,"):
        model.denoise(latents, prompt=PROMPT, step=0, **given)


@every
def test_decoded_latents_are_the_pipelines_own_image(case: str) -> None:
    model = shared(case)
    out = model(PROMPT, **settings(case))
    assert out.latents is not None
    size = {"height": SIZE[0], "width": SIZE[1]}
    found = model.decode_latents(out.latents, output_type="pt", **size)
    torch.testing.assert_close(found, out.images, rtol=1e-5, atol=1e-6)
    encoded = model.encode_image(picture(*SIZE), **size)
    again = own_part(case, out.latents)[:, : encoded.shape[1]]
    assert encoded.shape == again.shape and math.prod(encoded.shape) == 4 * 4 * OWN


def test_latents_that_make_no_image_are_refused() -> None:
    model = shared("plus of two")
    latents = model(PROMPT, **settings("plus of two")).latents
    assert latents is not None
    with pytest.raises(RunError, match=r"first of 47 patches.* give height= and width="):
        model.decode_latents(latents)
    with pytest.raises(RunError, match=r"1024 x 1024 pixels \(65536 patches\)"):
        model.decode_latents(latents, height=1024, width=1024)
    with pytest.raises(RunError, match="have axes batch, pos, channel, depth, down, right; got"):
        model.decode_latents(latents[:, 0], height=SIZE[0], width=SIZE[1])


@every
def test_words_beside_images_in_the_text_are_refused(case: str) -> None:
    model, given = shared(case), settings(case)
    name = next(iter(GIVEN[case][1]))
    with pytest.raises(WordError, match=f"is given another {name}=.*use token indices"):
        model.prompt_tokens(PROMPT, run=Run(PROMPT, **given))
    site = Site(model.text_pattern_sites()[0].name, key="cat")
    with pytest.raises(WordError, match=f"was given another {name}=.*use token indices"):
        model.run_with_hooks(PROMPT, fwd_hooks=[(site, lambda _value, _hook: None)], **given)


def test_a_prompt_that_the_tokenizer_of_edit_cuts_is_refused() -> None:
    model = HookedDiffusion(tiny_pipeline(EDIT))
    pipe: Any = model.pipe
    assert model.words(PROMPT, "cat")
    pipe.text_token_max_length = 10
    with pytest.raises(WordError, match="is too long for JoyImageEditPipeline, which cuts"):
        model.words(PROMPT, "cat")


@every
def test_analyses_that_tell_tokens_are_refused_beside_images(case: str) -> None:
    model, given = shared(case), settings(case, guidance_scale=1.0)
    with pytest.raises(WordError, match="use token indices instead of words"):
        attention_maps(model, Run(PROMPT, **given), words=["cat"])
    last = f"blocks.{model.n_blocks - 1}.img.hook_resid_post"
    with pytest.raises(WordError, match="use token indices instead of words"):
        activation_patching(model, PROMPT, OTHER, sites=[last], show_progress=False, **given)


@every
def test_the_description_is_what_the_pipeline_does_with_images(case: str) -> None:
    pipe = tiny_pipeline(GIVEN[case][0])
    given = {key: one for key, one in settings(case).items() if key != "output_type"}
    left_open = {line.partition(":")[0] for line in check_pipeline(pipe, **given)}
    assert left_open == {"grid, in tokens", "place of 'cat' in the text"}


def test_concepts_as_words_are_refused_where_there_is_no_encode_prompt() -> None:
    model = shared("plus")
    for tokens in ("first", "joint", -1):
        with (
            pytest.raises(ConceptError, match=r"has no `encode_prompt`.* streams embeddings"),
            model.concept_streams(["dog"], tokens=tokens),
        ):
            pass
    rows = torch.randn(1, 2, 24, generator=torch.Generator().manual_seed(0))
    plain = model(PROMPT, seed=0, **settings("plus")).images
    with model.concept_streams(rows), model.caching("blocks.0.concept.hook_resid_post") as cache:
        out = model(PROMPT, seed=0, **settings("plus"))
    assert torch.equal(out.images, plain)
    assert cache["blocks.0.concept.hook_resid_post"].shape[-2] == 2


def test_concepts_as_words_beside_an_image_change_nothing() -> None:
    model = shared("edit")
    plain = drawn(model, PROMPT, seed=0, **settings("edit")).images
    with model.concept_streams(["dog"]) as streams:
        out = drawn(model, PROMPT, seed=0, **settings("edit"))
    assert torch.equal(out.images, plain)
    assert streams.blocks == tuple(range(model.n_blocks))
