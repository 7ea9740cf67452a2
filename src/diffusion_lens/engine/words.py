"""Words of a prompt as positions in the text stream, by character offsets."""

from __future__ import annotations

import re
from typing import Any

from diffusion_lens.architectures.spec import TextPart
from diffusion_lens.errors import WordError, closest, listing

WORD = re.compile(r"\w+(?:['\u2019\-]\w+)*")


def words_of(prompt: str) -> list[str]:
    """The distinct words of a prompt, in order."""
    return list(dict.fromkeys(WORD.findall(prompt)))


def word_tokens(
    pipe: Any, parts: tuple[TextPart, ...], prompts: str | tuple[str, ...], word: str
) -> tuple[int, ...]:
    """Positions in the text stream of every occurrence of a word or phrase.

    Upper and lower case are not told apart. Where several tokenizers fill the stream (SD3: CLIP,
    then T5), the positions of all of them are given.

    Args:
        pipe: The pipeline, for its tokenizers.
        parts: How the tokenizers fill the text stream.
        prompts: The prompt, or one for each part.
        word: A word or phrase of it.

    Raises:
        WordError: If the word is not in the prompt, or was cut off at the tokenizer's limit.
    """
    each = (prompts,) * len(parts) if isinstance(prompts, str) else prompts
    found: list[int] = []
    start, there = 0, False
    for part, prompt in zip(parts, each, strict=True):
        tokenizer = getattr(pipe, part.tokenizer, None)
        if tokenizer is not None:
            prompt = _converted(pipe, tokenizer, prompt)
            spans = _occurrences(prompt, word)
            there = there or bool(spans)
            offsets = _offsets(tokenizer, part, prompt)
            found += [start + index for index in _overlapping(offsets, prompt, spans)]
        start += part.length or 0
    if not there:
        prompt = " / ".join(dict.fromkeys(each))
        near = closest(word, [one for one in words_of(prompt) if len(one) > 1])
        hint = f" Closest: {near[0]!r}." if near else ""
        raise WordError(
            f"{word!r} is not in the prompt {prompt!r}.{hint} Its words are "
            f"{listing(words_of(prompt), most=20)}; token indices are accepted, too."
        )
    if not found:
        raise WordError(
            f"{word!r} is in the prompt, but lies behind the last token that the tokenizer keeps; "
            "shorten the prompt, or raise max_sequence_length where the pipeline has it"
        )
    return tuple(found)


def _occurrences(prompt: str, word: str) -> list[tuple[int, int]]:
    pattern = rf"(?<!\w){re.escape(word.strip())}(?!\w)"
    return [found.span() for found in re.finditer(pattern, prompt, re.IGNORECASE)]


def _converted(pipe: Any, tokenizer: Any, prompt: str) -> str:
    """The prompt as the tokenizer gets it: textual inversion writes its tokens into it."""
    if hasattr(pipe, "maybe_convert_prompt"):
        return pipe.maybe_convert_prompt(prompt, tokenizer)
    return prompt


def _offsets(tokenizer: Any, part: TextPart, prompt: str) -> list[tuple[int, int]]:
    if not getattr(tokenizer, "is_fast", False):
        raise WordError(
            f"{type(tokenizer).__name__} gives no character offsets, so words cannot be located; "
            "load its fast version, or use token indices"
        )
    limit = part.length or getattr(tokenizer, "model_max_length", 512)
    limited = {"truncation": True, "max_length": int(min(limit, 10_000))}
    encoded = tokenizer(prompt, return_offsets_mapping=True, **limited)
    return encoded["offset_mapping"]


def _overlapping(
    offsets: list[tuple[int, int]], prompt: str, spans: list[tuple[int, int]]
) -> list[int]:
    found = []
    for index, (start, end) in enumerate(offsets):
        text = prompt[start:end]
        start += len(text) - len(text.lstrip())
        if start < end and any(start < stop and begin < end for begin, stop in spans):
            found.append(index)
    return found
