"""FLUX.3, which diffusers has as a modular pipeline: its own call is followed."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from diffusion_lens import HookedDiffusion, Site
from diffusion_lens.errors import RunError, WordError
from tests.tiny_pipelines import packed
from tests.tiny_pipelines.families import HEIGHT, SIZE, WIDTH

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
PROMPT, NEGATIVE = "a red cat on the glass table", "a red dog on the glass table"
GIVEN: dict[str, Any] = {
    "height": SIZE[0],
    "width": SIZE[1],
    "num_inference_steps": 2,
    "text_encoder_out_layers": (1, 2, 3),
    "output_type": "pt",
    "output": "images",
}


@functools.cache
def shared() -> HookedDiffusion:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return HookedDiffusion(packed.flux3())


def called(prompt: str = PROMPT, **more: Any) -> Tensor:
    pipe: Any = shared().pipe
    return pipe(prompt=prompt, generator=torch.Generator().manual_seed(0), **(GIVEN | more))


def calls(prompt: str, **more: Any) -> list[dict[str, Any]]:
    """The arguments of every call of the denoiser, by a torch hook of our own."""
    found: list[dict[str, Any]] = []
    handle = shared().denoiser.register_forward_pre_hook(
        lambda _module, _args, kwargs: found.append(kwargs), with_kwargs=True
    )
    try:
        called(prompt, **more)
    finally:
        handle.remove()
    return found


def test_read_only_hooks_change_nothing_and_every_point_fires() -> None:
    model, fired = shared(), set()
    expected = called(negative_prompt=NEGATIVE)
    with model.hooks([("**", lambda _value, hook: fired.add(hook.name))]):
        found = called(negative_prompt=NEGATIVE)
    assert torch.equal(found, expected) and fired == set(model.points)


def test_a_branch_has_the_text_of_its_own_prompt() -> None:
    model, name = shared(), "hook_text_emb"
    seen: dict[tuple[int, str], Tensor] = {}

    def see(value: Tensor, hook: Any) -> None:
        seen[hook.step, hook.branch] = value.clone()

    both = [Site(name, branch=branch) for branch in ("cond", "uncond")]
    with model.hooks([(site, see) for site in both]):
        called(negative_prompt=NEGATIVE)
    alone = {
        branch: calls(prompt, negative_prompt="")[0]["encoder_hidden_states"]
        for branch, prompt in (("cond", PROMPT), ("uncond", NEGATIVE))
    }
    assert set(seen) == {(step, branch) for step in (0, 1) for branch in alone}
    for (_, branch), text in seen.items():
        assert torch.equal(text, alone[branch])


@pytest.mark.parametrize("given", [False, True])
def test_the_grid_is_the_images_own_and_references_come_behind(given: bool) -> None:
    model, seen = shared(), []
    more: dict[str, Any] = {}
    if given:
        pixels = torch.randint(0, 255, (64, 96, 3), generator=torch.Generator().manual_seed(0))
        more = {"image": Image.fromarray(pixels.to(torch.uint8).numpy())}

    def see(value: Tensor, hook: Any) -> None:
        seen.append((hook.grid, value.shape[1], hook.timestep))

    with model.hooks([(Site("blocks.0.img.hook_resid_pre", branch="cond"), see)]):
        called(**more)
    grids, tokens, timesteps = zip(*seen, strict=True)
    references = calls(PROMPT, **more)[0].get("image_cond_hidden_states")
    behind = 0 if references is None else references.shape[1]
    assert set(grids) == {(HEIGHT, WIDTH)} and (behind > 0) == given
    assert set(tokens) == {HEIGHT * WIDTH + behind}
    pipe: Any = model.pipe
    assert timesteps == pytest.approx(pipe.scheduler.timesteps.tolist())


def test_a_latents_place_is_the_token_of_its_row_and_column() -> None:
    model, name, found = shared(), "blocks.0.img.hook_resid_pre", []
    start = torch.randn(1, 4, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    for change in (0.0, 5.0):
        latents = start.clone()
        latents[:, :, 2, 1] += change
        with model.caching(name) as cache:
            called(latents=latents)
        found.append(cache.at(step=0)[name][0])
    moved = (found[1] - found[0]).norm(dim=-1)
    assert int(moved.argmax()) == 2 * WIDTH + 1


@pytest.mark.parametrize("side", ["left", "right"])
def test_words_lie_where_another_word_changes_the_text(
    side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shared()
    pipe: Any = model.pipe
    monkeypatch.setattr(pipe.tokenizer.tokenizer, "padding_side", side)
    for prompt in (PROMPT, "A Red cat on the Glass Table"):
        for word, other in (("cat", "dog"), ("on", "fly")):
            places = model.words(prompt, word)
            one, changed = (
                calls(text)[0]["encoder_hidden_states"][0]
                for text in (prompt, prompt.replace(word, other))
            )
            rows = (one != changed).any(-1).nonzero().flatten().tolist()
            assert rows[0] == places[0]


def test_a_run_of_the_models_is_that_of_the_pipeline() -> None:
    run = {key: value for key, value in GIVEN.items() if key not in ("output", "output_type")}
    found = shared()(PROMPT, seed=0, **run, output_type="pt")
    assert torch.equal(torch.as_tensor(found.images), torch.as_tensor(called()))


def test_what_a_modular_pipeline_does_not_tell_is_refused() -> None:
    model = shared()
    latents = torch.zeros(1, HEIGHT * WIDTH, 4)
    asked = {
        "decode_latents": lambda: model.decode_latents(latents),
        "encode_image": lambda: model.encode_image(torch.zeros(1, 3, *SIZE)),
    }
    for what, ask in asked.items():
        with pytest.raises(RunError, match=f"{what} is not described for Flux3ModularPipeline"):
            ask()
    site = Site("hook_text_emb", pos="cat", branch="cond")
    with pytest.raises(WordError, match="is not described"), model.hooks([(site, _nothing)]):
        called()


def _nothing(_value: Tensor, _hook: Any) -> None:
    """A hook that reads nothing."""
