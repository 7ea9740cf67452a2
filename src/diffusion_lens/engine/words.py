"""Words of a prompt as positions in the text stream, by character offsets."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from diffusion_lens.architectures.spec import TextPart
from diffusion_lens.errors import WordError, closest, listing

MARK = "\ue000"
"""Stands for the prompt where a template is taken apart; a character of no language."""

REWRITING = {
    "enable_prompt_rewrite": "",
    "caption_upsample_temperature": "",
    "prompt_upsampling": "",
    "enable_prompt_enhancement": "",
    "use_pe": "pe",
}
"""Settings with which a pipeline has a language model write another prompt (LongCat, Flux.2,
Ideogram 4, ERNIE-Image, LTX-2), each with the model that it needs besides the text encoder."""

PICTURES = ("image", "num_condition_images")
"""Arguments of `encode_prompt` with which images stand in the text (Qwen-Image-Edit)."""

WORD = re.compile(r"\w+(?:['\u2019\-]\w+)*")


def tokenizer_of(pipe: Any, part: TextPart) -> Any:
    """The tokenizer of a part, taken out of a processor of text and images."""
    found = getattr(pipe, part.tokenizer, None)
    return found if hasattr(found, "is_fast") else getattr(found, "tokenizer", found)


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
        ends: For each text how many of its characters the tokens cover; None where it was not cut.
        expansions: Tokens of textual inversion that are several vectors, each with the way that the
            prompt gets it.
    """

    texts: tuple[str, ...]
    positions: tuple[int, ...]
    parts: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    ends: tuple[int | None, ...] = ()
    expansions: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(
        cls,
        pipe: Any,
        parts: tuple[TextPart, ...],
        prompts: str | tuple[str, ...],
        *,
        max_length: int | None = None,
        negative: bool = False,
    ) -> PromptTokens:
        """Tokenize a prompt as a pipeline does.

        Args:
            pipe: The pipeline, for its tokenizers.
            parts: How the tokenizers fill the text stream.
            prompts: The prompt, or one for each part.
            max_length: The run's `max_sequence_length`; None is the pipeline's default.
            negative: Whether it is a negative prompt, which some pipelines treat in another way.

        Raises:
            WordError: If a tokenizer gives no character offsets, or words cannot be told.
        """
        _refuse_pictures(pipe)
        each = (prompts,) * len(parts) if isinstance(prompts, str) else tuple(prompts)
        texts: list[str] = []
        ends: list[int | None] = []
        expansions: list[tuple[str, str]] = []
        found: list[tuple[int, int, tuple[int, int]]] = []
        start = 0
        for number, (part, prompt) in enumerate(zip(parts, each, strict=True)):
            length = part.length or 0
            if part.untold:
                raise WordError(
                    f"words cannot be told in {type(pipe).__name__}: {part.untold}; use token "
                    "indices"
                )
            if negative and part.negative is not None:
                part = part.negative
            tokenizer = tokenizer_of(pipe, part)
            text, offsets, cut, first = "", [], False, start
            if tokenizer is not None:
                expansions += _expansions(pipe, tokenizer)
                text = _converted(pipe, tokenizer, prompt)
                length = limit = _limit(pipe, tokenizer, part, max_length)
                text, offsets, cut = _tokens(pipe, tokenizer, part, text, limit)
                dropped = 0 if part.dropped is None else part.dropped(pipe)
                first -= dropped
                left = part.in_front or getattr(tokenizer, "padding_side", "right") == "left"
                if part.padded and left:
                    first += limit + dropped - len(offsets)
                if part.before is not None:
                    first += part.before(pipe, len(offsets) - dropped)
            texts.append(text)
            rows = [(first + at, span) for at, span in enumerate(offsets) if first + at >= start]
            ends.append(max((stop for _, (_, stop) in rows), default=0) if cut else None)
            found += [(row, number, span) for row, span in rows]
            start += length
        columns = zip(*found, strict=True) if found else ((), (), ())
        positions, owners, spans = (tuple(column) for column in columns)
        several = tuple(dict.fromkeys(expansions))
        return cls(tuple(texts), positions, owners, spans, tuple(ends), several)

    def find(self, word: str, *, occurrence: int | None = None) -> tuple[int, ...]:
        """Positions in the text stream of a word or phrase.

        Upper and lower case are not told apart. Where several tokenizers fill the stream (SD3:
        CLIP, then T5), the positions of all of them are given. All vectors of a textual-inversion
        token are the word.

        Args:
            word: A word or phrase of the prompt.
            occurrence: Which one, counted from 0 (negative: from the last); None for all.

        Raises:
            WordError: If the word is not in the prompt, or not as often, or was cut off at the
                tokenizer's limit.
        """
        spans = [_occurrences(text, self._expanded(word)) for text in self.texts]
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
        ends = self.ends or (None,) * len(spans)
        spans = [
            [(first, last) for first, last in some if end is None or last <= end]
            for some, end in zip(spans, ends, strict=True)
        ]
        found = [
            position
            for position, part, span in zip(self.positions, self.parts, self.spans, strict=True)
            if _overlaps(span, self.texts[part], spans[part])
        ]
        if not found:
            raise WordError(
                f"{word!r} is in the prompt, but lies behind the last token that the tokenizer "
                f"keeps: the prompt is cut after {self._kept()!r}; shorten it, or raise "
                "max_sequence_length where the pipeline has it"
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

    def _expanded(self, word: str) -> str:
        """A word as textual inversion writes it into the prompt."""
        for token, vectors in self.expansions:
            if vectors.lower() not in word.lower():
                pattern = rf"{re.escape(token)}(?!\w)"
                word = re.sub(pattern, lambda _, text=vectors: text, word, flags=re.IGNORECASE)
        return word

    def _kept(self) -> str:
        """The last characters that any tokenizer keeps."""
        ends = zip(self.texts, self.ends, strict=False)
        text, end = max(
            ((text, end or 0) for text, end in ends), key=lambda one: one[1], default=("", 0)
        )
        return text[max(0, end - 20) : end]

    def _missing(self, word: str) -> WordError:
        words = words_of(self.prompt)
        near = closest(word, [one for one in words if len(one) > 1])
        hint = f" Closest: {near[0]!r}." if near else ""
        return WordError(
            f"{word!r} is not in the prompt {self.prompt!r}.{hint} Its words are "
            f"{listing(words, most=20)}; token indices are accepted, too."
        )


def refuse_other_text(pipe: Any, parts: tuple[TextPart, ...], settings: Mapping[str, Any]) -> None:
    """Refuse settings of a run in which the tokens are not those of the prompt alone.

    Raises:
        WordError: Naming the setting.
    """
    call = inspect.signature(type(pipe).__call__).parameters
    given = {name: settings.get(name, call[name].default) for name in call if name != "self"}
    for name, writer in REWRITING.items():
        if given.get(name) and (not writer or getattr(pipe, writer, None) is not None):
            raise WordError(
                f"{type(pipe).__name__} writes the prompt anew before it is encoded "
                f"({name}={given[name]!r}), so that its words are not known before the run; give "
                f"{name}=None, or read `hook.words` inside the run"
            )
    for name in (name for part in parts for name in part.assumed if name in call):
        if differs(given[name], call[name].default):
            raise WordError(
                f"this run of {type(pipe).__name__} is given another {name}= than the class's own, "
                "which the places of words depend on; use token indices instead of words"
            )


def differs(given: Any, usual: Any) -> bool:
    """Whether an argument is another than usual; arrays compare with None element by element."""
    return given is not None if usual is None else bool(given != usual)


def _refuse_pictures(pipe: Any) -> None:
    """Refuse pipelines whose text encoder reads the given image beside the prompt.

    Raises:
        WordError: Naming the pipeline.
    """
    encode = getattr(type(pipe), "encode_prompt", None)
    known = {} if encode is None else inspect.signature(encode).parameters
    if any(name in known for name in PICTURES):
        raise WordError(
            f"{type(pipe).__name__} puts the given image among the prompt's tokens, as many as its "
            "size makes, so that words cannot be told; use token indices"
        )


def word_tokens(
    pipe: Any,
    parts: tuple[TextPart, ...],
    prompts: str | tuple[str, ...],
    word: str,
    *,
    max_length: int | None = None,
) -> tuple[int, ...]:
    """Positions in the text stream of every occurrence of a word or phrase.

    Args:
        pipe: The pipeline, for its tokenizers.
        parts: How the tokenizers fill the text stream.
        prompts: The prompt, or one for each part.
        word: A word or phrase of it.
        max_length: The run's `max_sequence_length`; None is the pipeline's default.

    Raises:
        WordError: If the word is not in the prompt, or was cut off at the tokenizer's limit.
    """
    return PromptTokens.of(pipe, parts, prompts, max_length=max_length).find(word)


def _occurrences(prompt: str, word: str) -> list[tuple[int, int]]:
    pattern = rf"(?<!\w){re.escape(word.strip())}(?!\w)"
    return [found.span() for found in re.finditer(pattern, prompt, re.IGNORECASE)]


def _converted(pipe: Any, tokenizer: Any, prompt: str) -> str:
    """The prompt as the tokenizer gets it: textual inversion writes its tokens into it."""
    if hasattr(pipe, "maybe_convert_prompt"):
        return pipe.maybe_convert_prompt(prompt, tokenizer)
    return prompt


def _expansions(pipe: Any, tokenizer: Any) -> list[tuple[str, str]]:
    """The textual-inversion tokens that stand for several vectors, as the prompt gets them."""
    if not hasattr(pipe, "maybe_convert_prompt"):
        return []
    added = getattr(tokenizer, "added_tokens_encoder", {})
    several = [token for token in added if f"{token}_1" in added]
    return [(token, pipe.maybe_convert_prompt(token, tokenizer)) for token in several]


def _limit(pipe: Any, tokenizer: Any, part: TextPart, max_length: int | None) -> int:
    """How many tokens of a part the pipeline keeps."""
    if part.length is not None:
        return part.length
    for method in ("__call__", "encode_prompt"):
        call = getattr(type(pipe), method, None)
        known = {} if call is None else inspect.signature(call).parameters
        if "max_sequence_length" in known:
            usual = getattr(pipe, "default_max_sequence_length", None)
            chosen = max_length or known["max_sequence_length"].default or usual
            if isinstance(chosen, int):
                return chosen - (0 if part.reserved is None else part.reserved(pipe))
    chosen = getattr(pipe, "tokenizer_max_length", None)
    return chosen or getattr(tokenizer, "model_max_length", 512)


def _tokens(
    pipe: Any, tokenizer: Any, part: TextPart, prompt: str, limit: int
) -> tuple[str, list[tuple[int, int]], bool]:
    """The prompt as it is tokenized, the characters of each token kept, and whether it was cut.

    Tokens of a template, like start and end tokens, cover no characters of the prompt.
    """
    limit += 0 if part.dropped is None else part.dropped(pipe)
    if part.pieces is not None:
        return _tokens_by_piece(pipe, tokenizer, part, prompt, limit)
    if part.template is None:
        return prompt, *_offsets(tokenizer, prompt, limit, bare=part.bare)
    whole = part.template(pipe, prompt)
    before, mark, after = part.template(pipe, MARK).partition(MARK)
    if not mark or not whole.startswith(before) or not whole.endswith(after):
        raise WordError(
            f"{type(pipe).__name__} makes {whole!r} of the prompt {prompt!r}, in which the prompt "
            "cannot be told from the template; use token indices"
        )
    first, last = len(before), len(whole) - len(after)
    offsets, cut = _offsets(tokenizer, whole, limit, bare=part.bare)
    if cut and part.cut:
        raise WordError(
            f"the prompt {prompt!r} is too long for {type(pipe).__name__}, {part.cut}; shorten it, "
            "raise max_sequence_length, or use token indices"
        )
    inside = [
        (max(a, first) - first, max(min(b, last), first) - first)
        if b > first and a < last
        else (0, 0)
        for a, b in offsets
    ]
    reached = max((b for _, b in inside), default=0)
    return whole[first:last], inside, cut and reached < last - first


def _tokens_by_piece(
    pipe: Any, tokenizer: Any, part: TextPart, prompt: str, limit: int
) -> tuple[str, list[tuple[int, int]], bool]:
    """As `_tokens`, where the pieces of a prompt are tokenized one by one."""
    assert part.pieces is not None
    pieces, found, start = part.pieces(pipe, prompt), [], 0
    if "".join(pieces) != prompt:
        raise WordError(
            f"{type(pipe).__name__} cuts the prompt {prompt!r} into pieces that do not make it up "
            f"again ({pieces!r}), so that its words cannot be told; use token indices"
        )
    for piece in pieces:
        offsets, _ = _offsets(tokenizer, piece, len(prompt) * 8, bare=part.bare)
        found += [(start + a, start + b) for a, b in offsets]
        start += len(piece)
    return prompt, found[:limit], len(found) > limit


def _offsets(
    tokenizer: Any, prompt: str, limit: int, *, bare: bool = False
) -> tuple[list[tuple[int, int]], bool]:
    """The characters of each token that is kept, and whether any was cut away."""
    if not getattr(tokenizer, "is_fast", False):
        raise WordError(
            f"{type(tokenizer).__name__} gives no character offsets, so words cannot be located; "
            "load its fast version, or use token indices"
        )
    limited: dict[str, Any] = {"truncation": True, "max_length": int(min(limit, 10_000))}
    limited |= {"add_special_tokens": False} if bare else {}
    encoded = tokenizer(prompt, return_offsets_mapping=True, **limited)
    return encoded["offset_mapping"], bool(encoded.encodings[0].overflowing)


def _overlaps(span: tuple[int, int], prompt: str, wanted: list[tuple[int, int]]) -> bool:
    start, end = span
    text = prompt[start:end]
    start += len(text) - len(text.lstrip())
    return start < end and any(start < stop and begin < end for begin, stop in wanted)
