"""What every family's description says of its pipeline, checked against the pipeline itself."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lens import HookedDiffusion, Site
from diffusion_lens.errors import WordError
from tests.tiny_pipelines import PIPELINES, tiny_pipeline
from tests.tiny_pipelines.families import HEIGHT, WIDTH

FAST = ("flux2", "z_image")
SLOW = ("qwen_image", "krea2", "sana", "kandinsky5", "hidream")
"""Checked at each `make check`; the others are `exhaustive`."""


def mark(name: str) -> Any:
    """When a family's tests run."""
    if name in FAST:
        return ()
    return pytest.mark.slow if name in SLOW else pytest.mark.exhaustive


FAMILIES = [pytest.param(name, marks=mark(name)) for name in PIPELINES]
GUIDED = [
    pytest.param(name, marks=mark(name))
    for name, one in PIPELINES.items()
    if one.guided is not None
]
ONE_TEXT = [param for param in FAMILIES if param.values != ("hidream",)]
"""Those whose text stream one tokenizer fills; `test_families_hidream.py` has the other."""

BARE_NEGATIVES = ("lumina2", "sana")
"""Those that put nothing before a negative prompt, as they do before a prompt."""

CUT_AGAIN = ("qwen_image", "joy_image_edit")
"""Those that cut the embeddings once more than the tokens."""

PROMPT, NEGATIVE = "a red cat on the glass table", "a red dog on the glass table"
LONG = "a zebra on the glass table"

pytestmark = pytest.mark.filterwarnings("ignore")


@functools.cache
def shared(name: str) -> HookedDiffusion:
    """A model that tests share and leave as it was."""
    return HookedDiffusion(tiny_pipeline(name))


def settings(name: str, *, guided: bool = False, **more: Any) -> dict[str, Any]:
    """Of a run of two steps."""
    one = PIPELINES[name]
    height, width = one.pixels
    found = {"height": height, "width": width, "num_inference_steps": 2, **one.settings}
    guided = guided or not one.runs_unguided
    found |= one.guided if guided and one.guided is not None else one.unguided
    if guided and one.negative:
        found["negative_prompt"] = NEGATIVE
    return {**found, "output_type": "pt", **more}


def tokenizer_of(name: str) -> Any:
    """The tokenizer, in its processor or not."""
    pipe: Any = shared(name).pipe
    found = getattr(pipe, "processor", None) or pipe.tokenizer
    return found if hasattr(found, "is_fast") else found.tokenizer


@contextlib.contextmanager
def without_guider(name: str) -> Iterator[None]:
    """No second branch in HunyuanImage, whose guidance is a part of the pipeline."""
    pipe: Any = shared(name).pipe
    kept = {part: getattr(pipe, part) for part in ("guider", "ocr_guider") if hasattr(pipe, part)}
    vars(pipe).update(dict.fromkeys(kept))
    try:
        yield
    finally:
        vars(pipe).update(kept)


class _EnoughError(Exception):
    pass


def first_call(name: str, **given: Any) -> dict[str, Any]:
    """The arguments of the denoiser's first call, by a torch hook of our own."""
    pipe: Any = shared(name).pipe
    names = list(inspect.signature(type(pipe.transformer).forward).parameters)[1:]
    found: dict[str, Any] = {}

    def keep(_module: Any, args: tuple, kwargs: dict) -> None:
        found.update(dict(zip(names, args, strict=False)) | kwargs)
        raise _EnoughError

    handle = pipe.transformer.register_forward_pre_hook(keep, with_kwargs=True)
    given.setdefault("generator", torch.Generator().manual_seed(0))
    try:
        pipe(**given)
    except _EnoughError:
        return found
    finally:
        handle.remove()
    raise AssertionError("the denoiser did not run")


def own_embeddings(name: str, prompt: str) -> Tensor:
    """Those that the pipeline makes of a prompt alone, without guidance."""
    spec, alone = shared(name).spec, dict(PIPELINES[name].unguided)
    with without_guider(name):
        given = first_call(name, prompt=prompt, **(settings(name) | alone))[spec.text]
    return torch.stack(given) if isinstance(given, list) else given


def embedded(name: str, prompt: str) -> tuple[list[int], Tensor]:
    """The ids that the text encoder gets, and the text that the denoiser gets."""
    pipe: Any = shared(name).pipe
    found: list[list[int]] = []

    def keep(_module: Any, args: tuple, kwargs: dict) -> None:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        found.append(ids[0].tolist())

    encoder = pipe.text_encoder
    if name == "ideogram4":  # which calls its layers one by one
        encoder = encoder.language_model.embed_tokens
    handle = encoder.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        text = own_embeddings(name, prompt)
    finally:
        handle.remove()
    return found[0], text[0]


def differing(one: Any, other: Any) -> list[int]:
    """Where two sequences of rows differ."""
    return [at for at, (a, b) in enumerate(zip(one, other, strict=True)) if not _same(a, b)]


def _same(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("guided", [False, True])
def test_read_only_hooks_change_nothing_and_every_point_fires(name: str, guided: bool) -> None:
    model, fired = shared(name), set()
    given = settings(name, guided=guided)
    plain: Any = model.pipe
    expected = plain(prompt=PROMPT, generator=[torch.Generator().manual_seed(0)], **given)[0]
    hooks = [("**", lambda _value, hook: fired.add(hook.name))]
    out = model.run_with_hooks(PROMPT, seed=0, fwd_hooks=hooks, **given)
    assert torch.equal(out.images, expected)
    assert fired == set(model.points)


@pytest.mark.parametrize("name", GUIDED)
def test_a_branch_has_the_text_of_its_own_prompt(name: str) -> None:
    model, found = shared(name), {}
    hooks = [
        (
            Site("hook_text_emb", branch=branch),
            lambda value, hook: found.update({hook.branch: value.clone()}),
        )
        for branch in ("cond", "uncond")
    ]
    model.run_with_hooks(PROMPT, fwd_hooks=hooks, **settings(name, guided=True))
    assert set(found) == {"cond", "uncond"}
    close = functools.partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)
    close(found["cond"], own_embeddings(name, PROMPT))
    negative = NEGATIVE if PIPELINES[name].negative else ""
    close(found["uncond"], own_negative(name, negative))
    assert not _same(found["cond"], found["uncond"])


def own_negative(name: str, prompt: str) -> Tensor:
    """The embeddings of a negative prompt; Lumina 2 and Sana put nothing before it."""
    pipe: Any = shared(name).pipe
    if name in BARE_NEGATIVES:
        more = {"max_sequence_length": PIPELINES[name].settings["max_sequence_length"]}
        if name == "sana":
            more |= {"device": pipe.device, "dtype": torch.float32}
        return pipe._get_gemma_prompt_embeds(prompt, **more)[0]
    return own_embeddings(name, prompt)


def negative_rows(name: str) -> tuple[int, ...]:
    """Where a word lies that a negative prompt has in place of another, by its embeddings."""
    other = own_negative(name, NEGATIVE.replace("dog", "cat"))[0]
    first = differing(own_negative(name, NEGATIVE)[0], other)[0]
    return (first,)


@pytest.mark.parametrize("name", GUIDED)
def test_a_branch_has_the_prediction_of_its_own_prompt(name: str) -> None:
    model = shared(name)
    predictions = {}
    for branch in ("cond", "uncond"):
        _, cache = model.run_with_cache(
            PROMPT,
            names_filter="hook_noise_pred",
            steps=[0],
            branch=branch,
            **settings(name, guided=True),
        )
        predictions[branch] = cache.at(step=0)["hook_noise_pred"]
    alone = own_prediction(name, PROMPT)
    torch.testing.assert_close(predictions["cond"], alone, rtol=1e-4, atol=1e-4)
    assert (predictions["uncond"] - alone).abs().max() > 1e-3
    if name not in BARE_NEGATIVES:
        alone = own_prediction(name, NEGATIVE if PIPELINES[name].negative else "")
        torch.testing.assert_close(predictions["uncond"], alone, rtol=1e-4, atol=1e-4)


def own_prediction(name: str, prompt: str) -> Tensor:
    """That of the first step in a run without guidance, by a torch hook of our own."""
    pipe: Any = shared(name).pipe
    found: list[Any] = []

    def keep(_module: Any, _args: tuple, output: Any) -> None:
        found.append(output[0])
        raise _EnoughError

    handle = pipe.transformer.register_forward_hook(keep)
    alone = settings(name) | dict(PIPELINES[name].unguided)
    with without_guider(name), contextlib.suppress(_EnoughError):
        pipe(prompt=prompt, generator=[torch.Generator().manual_seed(0)], **alone)
    handle.remove()
    return torch.stack(found[0]) if isinstance(found[0], list) else found[0]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("guided", [False, True])
def test_the_timestep_is_the_schedulers(name: str, guided: bool) -> None:
    model, seen = shared(name), []
    hooks = [(Site("hook_latents", branch="cond"), lambda _v, hook: seen.append(hook.timestep))]
    model.run_with_hooks(PROMPT, fwd_hooks=hooks, **settings(name, guided=guided))
    pipe: Any = model.pipe
    assert seen == pytest.approx(pipe.scheduler.timesteps.tolist(), rel=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_timestep_is_told_from_the_denoisers_argument_alone(name: str) -> None:
    model, seen = shared(name), []
    arguments = first_call(name, prompt=PROMPT, **settings(name))
    pipe: Any = model.pipe
    hooks = [("hook_latents", lambda _v, hook: seen.append(hook.timestep))]
    with torch.no_grad(), model.hooks(hooks):
        model.denoiser(**arguments)
    assert seen == pytest.approx([float(pipe.scheduler.timesteps[0])], rel=1e-4, abs=0.5)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_grid_is_height_and_width_in_tokens(name: str) -> None:
    model, seen = shared(name), {}

    def see(value: Tensor, hook: Any) -> None:
        seen.setdefault("grid", hook.grid)
        seen.setdefault("tokens", value.shape[1])

    point = "blocks.0.img.hook_resid_pre"
    model.run_with_hooks(PROMPT, fwd_hooks=[(point, see)], **settings(name))
    *frames, height, width = seen["grid"]
    assert (height, width) == (HEIGHT, WIDTH) and frames in ([], [1])
    if not PIPELINES[name].padded:
        assert seen["tokens"] == HEIGHT * WIDTH
    assert model.spec.default_grid(model.denoiser, 0)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_latents_place_is_the_token_of_its_row_and_column(name: str) -> None:
    model = shared(name)
    row, column = 2, 1
    start = model(PROMPT, **settings(name)).latents
    assert start is not None
    found = []
    for change in (0.0, 5.0):
        changed = start.clone()
        if changed.ndim == 3 or "down" in model.points["hook_latents"].axes:
            changed[:, row * WIDTH + column] += change
        else:
            last = model.points["hook_latents"].axes[-1] == "channel"
            places = changed.movedim(-1, 1) if last else changed  # a view
            side = places.shape[-1] // WIDTH
            places[..., side * row, side * column] += change
        with model.caching("blocks.0.img.hook_resid_pre") as cache:
            model.denoise(changed, prompt=PROMPT, step=0, **settings(name))
        found.append(cache.at(step=0)["blocks.0.img.hook_resid_pre"])
    moved = (found[1] - found[0])[0].norm(dim=-1)
    assert int(moved.argmax()) == row * WIDTH + column


@pytest.mark.parametrize("name", ONE_TEXT)
def test_words_lie_where_another_word_changes_the_text(name: str) -> None:
    model = shared(name)
    for word, other in (("cat", "dog"), ("table", "house"), ("zebra", "vqxjk")):
        prompt = LONG if word == "zebra" else PROMPT
        ids, rows = embedded(name, prompt)
        ids_2, rows_2 = embedded(name, prompt.replace(word, other))
        places = places_in_embeddings(model, name, prompt, word)
        changed = differing(ids, ids_2)
        assert len(places) == changed[-1] - changed[0] + 1 >= 1
        if PIPELINES[name].causal:
            assert differing(rows, rows_2)[0] == places[0]
        else:
            assert changed[0] == places[0] and changed[-1] == places[-1]


def places_in_embeddings(model: HookedDiffusion, name: str, prompt: str, word: str) -> list[int]:
    """Where a word lies in the first text of the denoiser, without what it adds in front."""
    length = PIPELINES[name].settings.get("max_sequence_length")
    before = model.denoiser.register_tokens.shape[1] if name == "auraflow" else 0
    places = [at - before for at in model.words(prompt, word, max_sequence_length=length)]
    first = PIPELINES[name].first
    return places if first is None else [at for at in places if at < first]


@pytest.mark.parametrize("name", GUIDED)
def test_words_of_both_branches_are_looked_up_in_the_run(name: str) -> None:
    model, seen = shared(name), {}

    def see(_value: Any, hook: Any) -> None:
        seen[hook.branch] = hook.words

    hooks = [(Site("hook_latents", branch=branch), see) for branch in ("cond", "uncond")]
    model.run_with_hooks(PROMPT, fwd_hooks=hooks, **settings(name, guided=True))
    length = PIPELINES[name].settings.get("max_sequence_length")
    assert seen["cond"]["cat"] == model.words(PROMPT, "cat", max_sequence_length=length)
    if PIPELINES[name].negative:
        assert "dog" in seen["uncond"] and "cat" not in seen["uncond"]
        if name not in BARE_NEGATIVES:
            assert seen["uncond"]["dog"] == seen["cond"]["cat"]
        else:
            assert seen["uncond"]["dog"] == negative_rows(name)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_words_row_is_the_one_that_the_blocks_see(name: str) -> None:
    model = shared(name)
    arguments = first_call(name, prompt=LONG, **settings(name))
    length = PIPELINES[name].settings.get("max_sequence_length")
    places = model.words(LONG, "zebra", max_sequence_length=length)
    given = places_in_embeddings(model, name, LONG, "zebra")
    found = []
    for change in (0.0, 30.0):
        text = arguments[model.spec.text]
        text = [one.clone() for one in text] if isinstance(text, list) else text.clone()
        text[0][given[0]] += change * torch.randn(
            text[0][given[0]].shape, generator=torch.Generator().manual_seed(0)
        )
        ends = ("cross_attn.hook_context", "attn.hook_context", "txt.hook_resid_pre")
        point = next(f"blocks.0.{end}" for end in ends if f"blocks.0.{end}" in model.points)
        with torch.no_grad(), model.caching(Site(point)) as cache:
            model.denoiser(**{**arguments, model.spec.text: text})
        found.append(cache.at(step=0)[point])
    moved = (found[1] - found[0])[0].norm(dim=-1)
    assert int(moved.argmax()) == places[0]


def too_long(name: str, prompt: str, length: Any) -> bool:
    """Whether a chat has more tokens than the pipeline keeps."""
    pipe: Any = shared(name).pipe
    whole = pipe.tokenizer(pipe.prompt_template.format(prompt)).input_ids
    return len(whole) > pipe.prompt_template_encode_start_idx + length


def dropped_by(name: str) -> int:
    """Tokens of a template's start that the pipeline cuts away."""
    pipe: Any = shared(name).pipe
    found = pipe.prompt_template_encode_start_idx
    return next(iter(found.values())) if isinstance(found, dict) else found


@pytest.mark.parametrize("name", ONE_TEXT)
def test_a_prompt_that_is_too_long_says_which_words_are_cut(name: str) -> None:
    if PIPELINES[name].first is not None:
        pytest.skip("another tokenizer may have room for it")
    model = shared(name)
    length = PIPELINES[name].settings.get("max_sequence_length")
    if name == "ideogram4":  # whose pipeline makes no image then
        with pytest.raises(WordError, match="is too long for Ideogram4Pipeline, which refuses it"):
            model.words("cat " * 70, "cat", max_sequence_length=length)
        return
    zebra = tokenizer_of(name)(" zebra", add_special_tokens=False).input_ids
    known = []
    for count in range(20, 70) if name != "lumina2" else range(5, 50):
        prompt = "cat " * count + "zebra"
        ids, rows = embedded(name, prompt)
        if name in CUT_AGAIN:
            ids = ids[: dropped_by(name) + len(rows)]
        known.append(any(ids[at : at + len(zebra)] == zebra for at in range(len(ids))))
        if name == "kandinsky5" and too_long(name, prompt, length):  # cut in a way of its own
            with pytest.raises(WordError, match="is too long for Kandinsky5T2IPipeline"):
                model.words(prompt, "zebra", max_sequence_length=length)
            continue
        if name == "joy_image_edit_plus" and len(ids) > dropped_by(name) + len(rows):
            known[-1] = False  # or not at the place that it would have
            with pytest.raises(WordError, match="is too long for JoyImageEditPlusPipeline"):
                model.words(prompt, "zebra", max_sequence_length=length)
            continue
        if known[-1]:
            assert len(model.words(prompt, "zebra", max_sequence_length=length)) == 5
            continue
        with pytest.raises(WordError, match="'zebra' is in the prompt, but lies behind the last"):
            model.words(prompt, "zebra", max_sequence_length=length)
    assert known[0] and not known[-1] and known == sorted(known, reverse=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_decoded_latents_are_the_pipelines_own_image(name: str) -> None:
    model = shared(name)
    out = model(PROMPT, **settings(name))
    assert out.latents is not None
    height, width = PIPELINES[name].pixels
    again = model.decode_latents(out.latents, height=height, width=width, output_type="pt")
    assert torch.equal(again, out.images)
    latent = model(PROMPT, **settings(name, output_type="latent"))
    assert latent.latents is not None and torch.equal(latent.latents, out.latents)


@pytest.mark.parametrize("name", FAMILIES)
def test_encoding_is_the_inverse_of_decoding(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = shared(name)
    pipe: Any = model.pipe
    given: list[Tensor] = []
    original = pipe.vae.decode

    def decode(latents: Tensor, **more: Any) -> Any:
        given.append(latents)
        return original(latents, **more)

    monkeypatch.setattr(pipe.vae, "decode", decode)
    out = model(PROMPT, **settings(name))
    encoded = type("Encoded", (), {"latents": given[0]})
    real = model.encode_image(out.images)
    assert out.latents is not None and real.shape == out.latents.shape
    monkeypatch.setattr(pipe.vae, "encode", lambda _pixels: encoded)
    torch.testing.assert_close(model.encode_image(out.images), out.latents, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("guided", [False, True])
def test_denoising_once_is_the_step_of_the_run(name: str, guided: bool) -> None:
    model, given = shared(name), settings(name, guided=guided)
    names = ["hook_sample", "hook_guided_pred"]
    _, cache = model.run_with_cache(PROMPT, names_filter=names, **given)
    for step in (0, 1):
        at = cache.at(step=step)
        latents = at["hook_sample"]
        found = model.denoise(latents, prompt=PROMPT, step=step, **given)
        assert torch.equal(found.guided, at["hook_guided_pred"])
        assert found.timestep == pytest.approx(float(model.pipe.scheduler.timesteps[step]))


@pytest.mark.parametrize("name", ONE_TEXT)
def test_a_words_row_of_the_embeddings_is_its_own(name: str) -> None:
    model, seen = shared(name), []
    if "pos" not in model.points["hook_text_emb"].axes:
        pytest.skip("text and image are one argument")
    rows = own_embeddings(name, PROMPT)[0]
    ids_rows = embedded(name, PROMPT.replace("cat", "dog"))[1]
    first = differing(rows, ids_rows)[0] if PIPELINES[name].causal else None

    def see(value: Tensor, hook: Any) -> None:
        seen.append((value[0].clone(), hook.words["cat"]))

    hooks = [(Site("hook_text_emb", pos="cat", branch="cond"), see)]
    model.run_with_hooks(PROMPT, fwd_hooks=hooks, **settings(name))
    value, places = seen[0]
    assert list(places) == places_in_embeddings(model, name, PROMPT, "cat")
    assert first is None or places[0] == first
    torch.testing.assert_close(value, rows[list(places)], rtol=1e-4, atol=1e-5)
