"""Two prompts of a model as an alignment of its text stream's tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from diffusion_lens import HookedDiffusion, Run
from diffusion_lens.analyses.prompt_to_prompt.alignment import (
    Alignment,
    Tokens,
    changed_words,
    identity,
    refinement,
    replacement,
    word_tokens,
)
from diffusion_lens.authoring import PromptTokens
from diffusion_lens.errors import RunError, UnsupportedModelError, WordError, refuse_unknown

EDITS = ("replace", "refine", "reweight")


class _Side(NamedTuple):
    """A prompt in one tokenizer's words: characters and ids of each token."""

    text: str
    spans: list[tuple[int, int]]
    ids: list[int]


class _Part(NamedTuple):
    """One tokenizer's stretch of the text stream."""

    source: _Side
    target: _Side
    start: int
    length: int | None


def align(model: HookedDiffusion, run: Run, target: str, *, edit: str, length: int) -> Alignment:
    """Align two prompts over the whole text stream.

    Args:
        model: The model, for its tokenizers.
        run: Its first prompt is the source.
        target: The target prompt.
        edit: `"replace"`, `"refine"`, or `"reweight"` for prompts that are the same.
        length: Number of tokens of the text stream.

    Raises:
        RunError: If `edit` is unknown, or the prompts are the same where they must differ, or
            differ where they must be the same.
        WordError: If they do not have equally many words, or a word was cut off.
    """
    source = run.prompts[0]
    refuse_unknown("edit", edit, EDITS, error=RunError)
    if edit == "reweight":
        if source != target:
            raise RunError(
                f"edit='reweight' keeps the prompt, but the target {target!r} is not the source "
                f"{source!r}; give reweight= beside edit='replace' or edit='refine'"
            )
        return identity(length)
    joined: Alignment | None = None
    for part in _parts(model, run, target):
        size = length - part.start if part.length is None else part.length
        found = _replaced(part, size) if edit == "replace" else _refined(part, size)
        joined = found if joined is None else joined.join(found)
    assert joined is not None
    return joined


def _replaced(part: _Part, length: int) -> Alignment:
    source, target = part.source, part.target
    at = changed_words(source.text, target.text)
    if not source.spans:  # a tokenizer that is not there
        return identity(length)
    ours = word_tokens(source.text, source.spans)
    theirs = word_tokens(target.text, target.spans)
    return replacement([ours[i] for i in at], [theirs[i] for i in at], length)


def _refined(part: _Part, length: int) -> Alignment:
    return refinement(part.source.ids, part.target.ids, length)


def _parts(model: HookedDiffusion, run: Run, target: str) -> Iterator[_Part]:
    ours, theirs = tokens_of(model, run, [run.prompts[0], target])
    start = 0
    for number, part in enumerate(model.spec.text_parts):
        sides = []
        for tokens in (ours, theirs):
            _refuse_framed(model, part, tokens, number, start)
            text = tokens.texts[number]
            spans = [
                span
                for span, owner in zip(tokens.spans, tokens.parts, strict=True)
                if owner == number
            ]
            sides.append(_Side(text, spans, _token_ids(model, part.tokenizer, text, len(spans))))
        yield _Part(sides[0], sides[1], start, part.length)
        start += part.length or 0


def _refuse_framed(
    model: HookedDiffusion, part: Any, tokens: PromptTokens, number: int, start: int
) -> None:
    """Refuse a prompt whose tokens are not those of the tokenizer alone, from the start on.

    Raises:
        UnsupportedModelError: If a template, registers or padding stand around them.
    """
    rows = [at for at, owner in zip(tokens.positions, tokens.parts, strict=True) if owner == number]
    moved = rows != list(range(start, start + len(rows)))
    if moved or part.template is not None or part.pieces is not None:
        raise UnsupportedModelError(
            f"{type(model.pipe).__name__} puts a template, registers or padding around its "
            "prompts, and how tokens of two prompts pair up there is not described; edit with "
            "`activation_patching`, `masactrl` or `sdedit`"
        )


def refuse_other_texts(model: HookedDiffusion, run: Run) -> None:
    """Refuse a run whose text stream holds other texts than its prompts.

    Raises:
        RunError: If a tokenizer is given its own.
    """
    names = [part.prompt for part in model.spec.text_parts if part.prompt]
    said = [name for name in names if run.settings.get(name) is not None]
    if said:
        raise RunError(
            f"{said[0]}= gives {model.name} a second text, in which words would have to be named, "
            "too; leave it out, so that every tokenizer reads the prompt"
        )


def tokens_of(model: HookedDiffusion, run: Run, prompts: Sequence[str]) -> list[PromptTokens]:
    """The tokens of prompts, as many as the run keeps."""
    return [model.prompt_tokens(prompt, run=run) for prompt in prompts]


def word_columns(
    model: HookedDiffusion, run: Run, words: Mapping[str, Any], *, argument: str
) -> list[dict[str, Tokens]]:
    """For each target the tokens of those words that are in it.

    Args:
        model: The model, for its tokenizers.
        run: Its prompts after the first are the targets.
        words: The words, each of which some target must have.
        argument: What to call them in an error.

    Raises:
        WordError: If a word is in none of the targets.
    """
    tokens = tokens_of(model, run, run.prompts[1:])
    found: list[dict[str, Tokens]] = [{} for _ in tokens]
    for word in words:
        missing: WordError | None = None
        for number, some in enumerate(tokens):
            try:
                found[number][word] = some.find(word)
            except WordError as error:
                missing = error
        if missing is not None and not any(word in one for one in found):
            raise WordError(f"{argument}: {missing}")
    return found


def _token_ids(model: HookedDiffusion, tokenizer: str, text: str, count: int) -> list[int]:
    """The ids of those tokens that are kept."""
    found = getattr(model.pipe, tokenizer, None)
    return [] if found is None else list(found(text)["input_ids"])[:count]
