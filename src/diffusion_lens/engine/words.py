"""Words of a prompt as positions in the text stream, by character offsets."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from diffusion_lens.architectures.spec import TextPart
from diffusion_lens.errors import WordError, closest, listing

WORD = re.compile(r"\w+(?:['\u2019\-]\w+)*")


def words_of(prompt: str) -> list[str]:
    """The distinct words of a prompt, in order."""
    return list(dict.fromkeys(WORD.findall(prompt)))


class PromptTokens(NamedTuple):
    """The tokens of one prompt: where each lies in the text stream and which characters it covers.

    Padding is left out; start and end tokens, which cover no characters, are there.

    Attributes:
        texts: The prompt of each part of the text stream, as its tokenizer gets it.
        positions: Where each token lies in the text stream, ascending.
        parts: Which of the texts each belongs to.
        spans: First character in that text, and the one after the last.
    """

    texts: tuple[str, ...]
    positions: tuple[int, ...]
    parts: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]

    @classmethod
    def of(
        cls, pipe: Any, parts: tuple[TextPart, ...], prompts: str | tuple[str, ...]
    ) -> PromptTokens:
        """Tokenize a prompt as a pipeline does.

        Args:
            pipe: The pipeline, for its tokenizers.
            parts: How the tokenizers fill the text stream.
            prompts: The prompt, or one for each part.

        Raises:
            WordError: If a tokenizer gives no character offsets.
        """
        each = (prompts,) * len(parts) if isinstance(prompts, str) else tuple(prompts)
        texts: list[str] = []
        found: list[tuple[int, int, tuple[int, int]]] = []
        start = 0
        for number, (part, prompt) in enumerate(zip(parts, each, strict=True)):
            tokenizer = getattr(pipe, part.tokenizer, None)
            text = "" if tokenizer is None else _converted(pipe, tokenizer, prompt)
            offsets = [] if tokenizer is None else _offsets(tokenizer, part, text)
            texts.append(text)
            found += [(start + index, number, (a, b)) for index, (a, b) in enumerate(offsets)]
            start += part.length or 0
        columns = zip(*found, strict=True) if found else ((), (), ())
        positions, owners, spans = (tuple(column) for column in columns)
        return cls(tuple(texts), positions, owners, spans)

    def find(self, word: str, *, occurrence: int | None = None) -> tuple[int, ...]:
        """Positions in the text stream of a word or phrase.

        Upper and lower case are not told apart. Where several tokenizers fill the stream (SD3:
        CLIP, then T5), the positions of all of them are given.

        Args:
            word: A word or phrase of the prompt.
            occurrence: Which one, counted from 0 (negative: from the last); None for all.

        Raises:
            WordError: If the word is not in the prompt, or not as often, or was cut off at the
                tokenizer's limit.
        """
        spans = [_occurrences(text, word) for text in self.texts]
        if not any(spans):
            raise self._missing(word)
        if occurrence is not None:
            count = max(map(len, spans))
            if not -count <= occurrence < count:
                raise WordError(
                    f"occurrence {occurrence} of {word!r} was asked for, it is {count} times in "
                    f"the prompt {self.prompt!r}; they are counted from 0"
                )
            at = occurrence % count
            spans = [some[at : at + 1] for some in spans]
        found = [
            position
            for position, part, span in zip(self.positions, self.parts, self.spans, strict=True)
            if _overlaps(span, self.texts[part], spans[part])
        ]
        if not found:
            raise WordError(
                f"{word!r} is in the prompt, but lies behind the last token that the tokenizer "
                "keeps; shorten the prompt, or raise max_sequence_length where the pipeline has it"
            )
        return tuple(found)

    @property
    def prompt(self) -> str:
        """The prompt, or those of the parts where they differ."""
        return " / ".join(dict.fromkeys(text for text in self.texts if text))

    def label(self, position: int) -> str:
        """The characters of a token; empty for start and end."""
        at = self.positions.index(position)
        first, last = self.spans[at]
        return self.texts[self.parts[at]][first:last].strip()

    def _missing(self, word: str) -> WordError:
        words = words_of(self.prompt)
        near = closest(word, [one for one in words if len(one) > 1])
        hint = f" Closest: {near[0]!r}." if near else ""
        return WordError(
            f"{word!r} is not in the prompt {self.prompt!r}.{hint} Its words are "
            f"{listing(words, most=20)}; token indices are accepted, too."
        )


def word_tokens(
    pipe: Any, parts: tuple[TextPart, ...], prompts: str | tuple[str, ...], word: str
) -> tuple[int, ...]:
    """Positions in the text stream of every occurrence of a word or phrase.

    Args:
        pipe: The pipeline, for its tokenizers.
        parts: How the tokenizers fill the text stream.
        prompts: The prompt, or one for each part.
        word: A word or phrase of it.

    Raises:
        WordError: If the word is not in the prompt, or was cut off at the tokenizer's limit.
    """
    return PromptTokens.of(pipe, parts, prompts).find(word)


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


def _overlaps(span: tuple[int, int], prompt: str, wanted: list[tuple[int, int]]) -> bool:
    start, end = span
    text = prompt[start:end]
    start += len(text) - len(text.lstrip())
    return start < end and any(start < stop and begin < end for begin, stop in wanted)
