"""Pipelines of described denoisers that are given an image: what is its own, what is refused."""

# diffusers and transformers annotate more narrowly than they take.
# pyright: reportArgumentType=false

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from diffusion_lens import HookedDiffusion, Run, Site
from diffusion_lens.analyses import attention_maps
from diffusion_lens.errors import RunError, WordError
from tests.tiny_pipelines import references
from tests.tiny_pipelines.families import HEIGHT, SIZE, WIDTH, quiet
from tests.tiny_videos.families import tiny_video

pytestmark = [pytest.mark.exhaustive, pytest.mark.filterwarnings("ignore")]
PROMPT = "a red cat on the glass table"
OWN = HEIGHT * WIDTH


def picture(height: int, width: int) -> Image.Image:
    pixels = torch.randint(0, 255, (height, width, 3), generator=torch.Generator().manual_seed(0))
    return Image.fromarray(pixels.to(torch.uint8).numpy())


SHORT: dict[str, Any] = {"num_inference_steps": 2, "output_type": "pt", "max_sequence_length": 60}
AT_SIZE: dict[str, Any] = {"height": SIZE[0], "width": SIZE[1]}
GUIDED: dict[str, Any] = {"negative_prompt": "a dog", "true_cfg_scale": 4.0}
GIVEN: dict[str, dict[str, Any]] = {
    "flux_kontext": {
        **AT_SIZE,
        "image": picture(*SIZE),
        "_auto_resize": False,
        "max_area": math.prod(SIZE),
    },
    "flux_fill": {**AT_SIZE, "image": picture(*SIZE), "mask_image": picture(*SIZE)},
    "flux_control": {**AT_SIZE, "control_image": picture(*SIZE)},
    "qwen_edit": {**AT_SIZE, **GUIDED, "image": picture(*SIZE)},
    "qwen_layered": {**GUIDED, "image": picture(*SIZE), "layers": 2},
}
GRIDS = dict.fromkeys(GIVEN, (HEIGHT, WIDTH)) | {"qwen_layered": (3, HEIGHT, WIDTH)}
REFERENCES = {"flux_kontext": OWN, "qwen_edit": OWN, "qwen_layered": OWN}
"""Tokens of the given image in the image's stream."""

every = pytest.mark.parametrize("name", GIVEN)


@pytest.fixture(autouse=True)
def small_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given images at their own size, where the pipelines bring them to about a megapixel."""
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_layered

    height, width = SIZE
    for module, found in (
        (pipeline_qwenimage_edit, (width, height, None)),
        (pipeline_qwenimage_layered, (width, height)),
    ):
        monkeypatch.setattr(module, "calculate_dimensions", lambda *_, found=found: found)


@functools.cache
def shared(name: str) -> HookedDiffusion:
    return HookedDiffusion(quiet(getattr(references, name)))


def own_image(name: str, **changes: Any) -> Any:
    pipe: Any = shared(name).pipe
    given = {**SHORT, **GIVEN[name], **changes}
    return pipe(prompt=PROMPT, generator=[torch.Generator().manual_seed(0)], **given)[0]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    return all(same(*pair) for pair in zip(one, other, strict=True))


@every
def test_read_only_hooks_change_nothing_and_every_point_fires(name: str) -> None:
    model, fired = shared(name), set()
    hooks = [("**", lambda _value, hook: fired.add(hook.name))]
    out = model.run_with_hooks(PROMPT, seed=0, fwd_hooks=hooks, **SHORT, **GIVEN[name])
    assert same(out.images, own_image(name))
    assert fired == set(model.points)


@every
def test_the_grid_is_the_images_own_and_references_come_behind(name: str) -> None:
    model, seen = shared(name), []

    def see(value: Tensor, hook: Any) -> None:
        seen.append((tuple(hook.grid), value.shape[1], hook.timestep))

    site = Site("blocks.0.img.hook_resid_pre", branch="cond")
    model.run_with_hooks(PROMPT, fwd_hooks=[(site, see)], **SHORT, **GIVEN[name])
    grids, tokens, timesteps = zip(*seen, strict=True)
    assert set(grids) == {GRIDS[name]}
    assert set(tokens) == {math.prod(GRIDS[name]) + REFERENCES.get(name, 0)}
    pipe: Any = model.pipe
    assert timesteps == pytest.approx(pipe.scheduler.timesteps.tolist(), rel=1e-5)


@every
def test_the_latents_are_the_first_tokens(name: str) -> None:
    model, place, found = shared(name), WIDTH + 2, []
    site = Site("blocks.0.img.hook_resid_pre", branch="cond")
    start = model(PROMPT, **{**SHORT, **GIVEN[name]}).latents
    assert start is not None and start.shape[1] == math.prod(GRIDS[name])
    for change in (0.0, 5.0):
        latents = start.clone()
        latents[:, place] += change
        given = SHORT | GIVEN[name] | {"latents": latents, "num_inference_steps": 1}
        with model.caching(site) as cache:
            model(PROMPT, **given)
        found.append(cache.at(step=0)["blocks.0.img.hook_resid_pre"][0])
    moved = (found[1] != found[0]).any(-1).nonzero().flatten().tolist()
    assert moved == [place]


@pytest.mark.parametrize("name", [name for name in GIVEN if name != "qwen_edit"])
def test_words_are_the_rows_that_change_with_them(name: str) -> None:
    model = shared(name)
    places = model.words(PROMPT, "cat", max_sequence_length=60)
    texts: list[Tensor] = []
    hook = (Site("hook_text_emb", branch="cond"), lambda value, _hook: texts.append(value.clone()))
    for prompt in (PROMPT, PROMPT.replace("cat", "dog")):
        model.run_with_hooks(prompt, fwd_hooks=[hook], **SHORT, **GIVEN[name])
    moved = (texts[0] != texts[-1]).any(-1)[0].nonzero().flatten().tolist()
    if name == "qwen_layered":  # whose text encoder is causal
        assert moved[0] == places[0]
    else:
        change = (texts[0] - texts[-1])[0].norm(dim=-1)
        assert int(change.argmax()) in places


@every
def test_one_evaluation_is_the_runs_own(name: str) -> None:
    model = shared(name)
    names = ["hook_sample", "hook_guided_pred"]
    given = {**SHORT, **GIVEN[name]}
    _, cache = model.run_with_cache(PROMPT, names_filter=names, **given)
    latents = cache.at(step=1)["hook_sample"]
    if name == "flux_fill":
        with pytest.raises(RunError, match="FluxFillPipeline makes its own latents"):
            model.denoise(latents, prompt=PROMPT, step=1, **given)
        return
    found = model.denoise(latents, prompt=PROMPT, step=1, **given)
    assert torch.equal(found.guided, cache.at(step=1)["hook_guided_pred"])


@every
def test_decoded_latents_are_the_pipelines_own_image(name: str) -> None:
    model = shared(name)
    out = model(PROMPT, **SHORT, **GIVEN[name])
    assert out.latents is not None
    if name == "qwen_layered":
        for ask in (model.decode_latents, model.encode_image):
            given = out.latents if ask == model.decode_latents else picture(*SIZE)
            with pytest.raises(RunError, match="QwenImageLayeredPipeline packs an image and its"):
                ask(given, **AT_SIZE)
        return
    assert torch.equal(model.decode_latents(out.latents, output_type="pt", **AT_SIZE), out.images)


def test_words_beside_an_image_in_the_text_are_refused() -> None:
    model = shared("qwen_edit")
    with pytest.raises(WordError, match="QwenImageEditPipeline puts the given image among the"):
        model.words(PROMPT, "cat")
    site = Site(model.text_pattern_sites()[0].name, key="cat")
    with pytest.raises(WordError, match="use token indices"):
        hooks = [(site, lambda _value, _hook: None)]
        model.run_with_hooks(PROMPT, fwd_hooks=hooks, **SHORT, **GIVEN["qwen_edit"])


def test_maps_beside_a_reference_are_those_of_the_images_own_tokens() -> None:
    model, kept = shared("flux_kontext"), []
    given = {**SHORT, **GIVEN["flux_kontext"]}
    found = attention_maps(model, Run(PROMPT, seed=0, **given), words=["cat"])
    sites = [site.with_(branch="cond") for site in model.text_pattern_sites()]
    hooks = [(site, lambda value, _: kept.append(value.clone())) for site in sites]
    model.run_with_hooks(PROMPT, seed=0, fwd_hooks=hooks, **given)
    word = list(model.words(PROMPT, "cat", max_sequence_length=60))
    each = torch.stack([value[..., word].mean(-1).mean(1) for value in kept]).mean(0)
    assert kept[0].shape[2] == 2 * OWN
    by_hand = each[0, :OWN].unflatten(-1, (HEIGHT, WIDTH))
    torch.testing.assert_close(found.word("cat").squeeze(), by_hand, rtol=1e-4, atol=1e-6)


def test_an_analysis_of_an_image_says_how_the_pipeline_gets_its_own() -> None:
    model = HookedDiffusion(tiny_video("wan_i2v").pipe)
    settings = dict(tiny_video("wan_i2v").settings)
    prompt = settings.pop("prompt")
    with pytest.raises(RunError, match="needs image=, which is not among the settings"):
        attention_maps(model, prompt, words=["cat"], **settings)
