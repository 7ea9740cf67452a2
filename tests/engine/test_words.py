from __future__ import annotations

from typing import Any

import pytest
import torch

from diffusion_lens import HookedDiffusion, Site
from diffusion_lens.engine.words import PromptTokens, word_tokens
from diffusion_lens.errors import WordError
from tests.pipelines import fresh_pipe, shared_pipe, short

PROMPT = "a red cat on the glass table"


def _kept(family: str, tokenizer: str, length: int) -> list[str]:
    """The tokens that the text encoder gets, end mark and padding among them."""
    found = getattr(shared_pipe(family), tokenizer)
    ids = found(PROMPT, padding="max_length", max_length=length, truncation=True).input_ids
    return found.convert_ids_to_tokens(ids)


@pytest.mark.parametrize(
    ("family", "tokenizer", "start"),
    [("flux", "tokenizer_2", 0), ("sd3", "tokenizer_3", 77), ("cogvideox", "tokenizer", 0)],
)
def test_a_run_that_cuts_its_text_has_the_words_before_the_end_mark(
    family: str, tokenizer: str, start: int
) -> None:
    pipe = shared_pipe(family)
    parts = HookedDiffusion(pipe).spec.text_parts
    count = len(PromptTokens.of(pipe, parts[-1:], PROMPT).positions)
    found = {"red": 0, "table": 0}
    for length in range(3, count + 3):
        kept = _kept(family, tokenizer, length)
        for word in found:
            places = [at - start for at in _found(pipe, parts, word, length) if at >= start]
            assert not {kept[at] for at in places} & {"</s>", "<pad>"}
            found[word] += bool(places)
    assert found["red"] > found["table"] == 3  # from the length on that holds all tokens


def _found(pipe: object, parts: tuple, word: str, length: int) -> tuple[int, ...]:
    try:
        return word_tokens(pipe, parts, PROMPT, word, max_length=length)
    except WordError:
        return ()


def test_a_word_that_is_cut_away_says_so() -> None:
    pipe = shared_pipe("flux")
    parts = HookedDiffusion(pipe).spec.text_parts
    places = word_tokens(pipe, parts, PROMPT, "table")
    first, last = places[0], places[-1]
    assert word_tokens(pipe, parts, PROMPT, "table", max_length=last + 2) == places
    for length in range(first + 1, last + 2):  # the end mark takes a place of the word's
        with pytest.raises(WordError, match="'table' is in the prompt, but lies behind the last"):
            word_tokens(pipe, parts, PROMPT, "table", max_length=length)
    with pytest.raises(WordError, match=r"the prompt is cut after 'd cat on the glass '|'.*glass"):
        word_tokens(pipe, parts, PROMPT, "glass table", max_length=first + 1)
    assert word_tokens(pipe, parts, PROMPT, "glass", max_length=first + 1)


def test_without_a_length_the_pipelines_own_default_cuts() -> None:
    pipe = shared_pipe("flux")
    parts = HookedDiffusion(pipe).spec.text_parts
    tokens = PromptTokens.of(pipe, parts, "cat " * 600)
    assert len(tokens.positions) == 512 and tokens.label(511) == ""
    assert len(PromptTokens.of(pipe, parts, "cat " * 600, max_length=64).positions) == 64


def test_every_vector_of_a_textual_inversion_token_is_the_word() -> None:
    pipe = fresh_pipe("sd")
    width = pipe.text_encoder.config.hidden_size
    vectors = {"<toy>": torch.randn(3, width), "<one>": torch.randn(1, width)}
    for token, embedding in vectors.items():
        pipe.load_textual_inversion({token: embedding}, token=token)
    model = HookedDiffusion(pipe)
    prompt = "a red <toy> cat and <one> dog"
    ids = pipe.tokenizer(pipe.maybe_convert_prompt(prompt, pipe.tokenizer)).input_ids
    names = pipe.tokenizer.convert_ids_to_tokens(ids)
    several = tuple(at for at, name in enumerate(names) if name.startswith("<toy>"))
    assert len(several) == 3
    assert model.words(prompt, "<toy>") == several
    assert model.words(prompt, "<one>") == (names.index("<one>"),)
    assert set(several) < set(model.words(prompt, "red <toy> cat"))
    assert model.words(f"{prompt} <toy>", "<toy>", occurrence=0) == several
    assert hash(model.prompt_tokens(prompt)) == hash(model.prompt_tokens(prompt))


@pytest.mark.parametrize("family", ["sd", "sd3", "flux"])
def test_a_prompt_is_tokenized_once_in_a_run_however_many_hooks_read_words(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, read = HookedDiffusion(shared_pipe(family)), []
    tokenized: list[Any] = []
    original = PromptTokens.of

    def counting(_kind: type, *args: Any, **kwargs: Any) -> PromptTokens:
        tokenized.append(args[2])
        return original(*args, **kwargs)

    monkeypatch.setattr(PromptTokens, "of", classmethod(counting))

    def reads(_value: Any, hook: Any) -> None:
        read.append(hook.words)
        assert all(hook.evaluation.word("cond", word) == at for word, at in hook.words.items())
        hook.words.clear()  # each reading is the reader's own

    hooks = [(Site("**.hook_resid_post", branch="cond"), reads)]
    hooks.append((Site("**.hook_pattern", key="cat"), reads))
    settings = {**short(family), "prompt": "a red cat on the table"}
    for _ in range(2):
        tokenized.clear()
        model.run_with_hooks(**settings, fwd_hooks=hooks)
        assert len(tokenized) == 1
    monkeypatch.undo()
    parts = model.spec.text_parts
    for words in read:
        assert list(words) == ["a", "red", "cat", "on", "the", "table"]
        assert words["cat"] == word_tokens(model.pipe, parts, settings["prompt"], "cat")
    assert not model.wiring.tracker.run.tokens  # and nothing of it is left


def test_words_are_looked_up_anew_in_the_next_run() -> None:
    model, read = HookedDiffusion(shared_pipe("sd")), []
    hooks = [(Site("hook_latents", branch="cond"), lambda _value, hook: read.append(hook.words))]
    for prompt in ("a cat", "the red cat"):
        model.run_with_hooks(**{**short("sd", steps=1), "prompt": prompt}, fwd_hooks=hooks)
    assert [found["cat"] for found in read] == [(2,), (3,)]
