"""Which tokens of one prompt stand for which of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher

from diffusion_lens import HookedDiffusion, Run
from diffusion_lens.authoring import WORD, words_of
from diffusion_lens.errors import PatchingError, WordError, listing

Spans = list[tuple[str, tuple[int, ...]]]
"""Every word of a prompt in its order, with its token positions in the text stream."""


@dataclass(frozen=True)
class Alignment:
    """Token positions of the base's prompt and those of the source's that belong to them.

    Attributes:
        tokens: From base to source position; None where all positions are the same.
        words: Pairs of (base word, source word) that stand for each other.
        unmatched: Words of either prompt that have no partner.
    """

    tokens: dict[int, int] | None = None
    words: tuple[tuple[str, str], ...] = ()
    unmatched: tuple[str, ...] = ()
    spans: tuple[tuple[int, ...], ...] = field(default=(), repr=False)

    def sources(self, positions: Sequence[int], *, what: str) -> tuple[int, ...]:
        """The source's positions for some of the base's.

        Raises:
            PatchingError: If one of them has no partner.
        """
        if self.tokens is None:
            return tuple(positions)
        missing = [position for position in positions if position not in self.tokens]
        if missing:
            raise PatchingError(
                f"{what}: token {missing[0]} of the base's prompt has no partner in the source's; "
                f"words without one are {listing(self.unmatched) or 'none'}. Word the prompts "
                "alike, or patch image-side sites"
            )
        return tuple(self.tokens[position] for position in positions)


def align(model: HookedDiffusion, source: Run, base: Run) -> Alignment:
    """Match the tokens of two prompts.

    Prompts whose words have equally many tokens are aligned token by token, with everything after
    them. Otherwise equal words are matched, and between them as many words as the other side has,
    if they have as many tokens. The end of the text and its padding, which hold much of what a
    prompt says, are then left as they are in the base.

    Args:
        model: The model, for its tokenizers.
        source: Run that values come from; embeddings are taken to be aligned.
        base: Run that is patched.

    Raises:
        PatchingError: If no word of one has a partner in the other.
    """
    if not source.prompts or not base.prompts:
        return Alignment()
    theirs, ours = word_spans(model, source), word_spans(model, base)
    if [tokens for _, tokens in theirs] == [tokens for _, tokens in ours]:
        words = tuple((mine, other) for (mine, _), (other, _) in zip(ours, theirs, strict=True))
        return Alignment(words=words, spans=tuple(tokens for _, tokens in ours))
    pairs = list(_partners(ours, theirs))
    if not pairs:
        raise PatchingError(
            f"no word of {base.prompts[0]!r} has a partner in {source.prompts[0]!r}: their tokens "
            "cannot be aligned. Word the prompts alike, or give embeddings of equal length"
        )
    before = range(min(ours[0][1][0], theirs[0][1][0]))
    tokens = {position: position for position in before}
    for mine, other in pairs:
        tokens |= dict(zip(ours[mine][1], theirs[other][1], strict=True))
    lone = [word for place, (word, _) in enumerate(ours) if place not in dict(pairs)]
    found = {other for _, other in pairs}
    lone += [word for place, (word, _) in enumerate(theirs) if place not in found]
    words = tuple((ours[mine][0], theirs[other][0]) for mine, other in pairs)
    return Alignment(tokens, words, tuple(lone), tuple(ours[mine][1] for mine, _ in pairs))


def word_spans(model: HookedDiffusion, run: Run) -> Spans:
    """Every word of a run's prompt, in order, with its positions in the text stream."""
    prompt = run.prompts[0]
    tokens = model.prompt_tokens(prompt, run=run)
    owner: dict[int, str] = {}
    for word in sorted(words_of(prompt), key=len):  # longer words take the place of their parts
        try:
            owner |= dict.fromkeys(tokens.find(word), word)
        except WordError:  # behind the last token that is kept
            continue
    order = WORD.findall(prompt)
    spans: Spans = [(word, ()) for word in order]
    place = -1
    for position in sorted(owner):
        goes_on = place >= 0 and order[place] == owner[position] and position - 1 in owner
        if not goes_on:
            place = _next(order, owner[position], place)
        spans[place] = (order[place], (*spans[place][1], position))
    return [(word, tokens) for word, tokens in spans if tokens]


def _next(order: Sequence[str], word: str, place: int) -> int:
    """Where the word stands next, from the front again behind the end (a second tokenizer)."""
    places = [*range(place + 1, len(order)), *range(place + 1)]
    return next(at for at in places if order[at] == word)


def _partners(ours: Spans, theirs: Spans) -> list[tuple[int, int]]:
    """Pairs of word numbers, ours and theirs."""
    sides = [[word.lower() for word, _ in spans] for spans in (ours, theirs)]
    found = []
    for kind, start, stop, begin, end in SequenceMatcher(
        None, sides[0], sides[1], False
    ).get_opcodes():
        if kind == "equal" or (kind == "replace" and stop - start == end - begin):
            found += zip(range(start, stop), range(begin, end), strict=True)
    return [(mine, other) for mine, other in found if len(ours[mine][1]) == len(theirs[other][1])]
