"""What a Site can say about steps, heads and token positions, in one normal form."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass

from diffusion_lens.errors import SiteError

STREAMS = ("img", "txt", "concept", "ip", "image")
"""The names of token streams; every other string in a token selector is a word of the prompt."""

SYNONYMS = {
    "cond": ("conditional", "conditioned", "condition", "positive"),
    "uncond": ("unconditional", "unconditioned", "uncondition", "negative"),
}
"""What the two branches are called elsewhere."""

GUIDED = "guided"
"""The branch of what comes after guidance, where the branches are one."""

Indices = tuple[int, ...] | slice
Part = tuple[tuple[int, Indices], ...]
"""(dimension, index) pairs of a tensor; selected dimensions are kept."""
Heads = tuple[int, ...] | tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Tokens:
    """A selection along a token axis.

    Attributes:
        stream: Only this stream, or None for the whole axis.
        words: Only the tokens of these words of the prompt.
        indices: Only these indices, counted inside `stream` where one is given.
    """

    stream: str | None = None
    words: tuple[str, ...] = ()
    indices: Indices | None = None


def indices_of(value: object, what: str) -> Indices:
    """Normalise an index, a slice, a range or several indices."""
    if isinstance(value, bool):
        raise SiteError(f"{what}= takes indices, got {value!r}")
    single = _integer(value)
    if single is not None:
        return (single,)
    if isinstance(value, slice):
        return _forwards(value, what)
    if isinstance(value, range):
        if value.step == 1 and len(value) and value.start >= 0:
            return slice(value.start, value.stop)
        return _not_empty(tuple(value), value, what)
    if isinstance(value, Iterable) and not isinstance(value, str):
        found = [None if isinstance(item, bool) else _integer(item) for item in value]
        integers = tuple(item for item in found if item is not None)
        if len(integers) == len(found):
            return _not_empty(integers, value, what)
    raise SiteError(f"{what}= takes an index, a slice, a range or a list of indices; got {value!r}")


def _forwards(value: slice, what: str) -> slice:
    """A slice of plain numbers, without a step where it is 1."""
    ends = [None if end is None else _integer(end) for end in (value.start, value.stop, value.step)]
    if ends.count(None) != [value.start, value.stop, value.step].count(None):
        raise SiteError(f"{what}={value!r}: the ends of a slice are whole numbers or left out")
    start, stop, step = ends
    if step is not None and step < 1:
        raise SiteError(f"{what}={value!r}: slices run forwards, with a step of at least 1")
    return slice(start, stop, None if step == 1 else step)


def _integer(value: object) -> int | None:
    """A whole number, those of numpy and torch included, or None."""
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def _not_empty(found: tuple[int, ...], given: object, what: str) -> tuple[int, ...]:
    if not found:
        raise SiteError(f"{what}={given!r} selects nothing; leave {what}= out to select all")
    return tuple(dict.fromkeys(found))


def steps_of(value: object) -> Indices | None:
    """Normalise `steps=`; steps count from 0 and negative ones do not exist."""
    if value is None:
        return None
    found = indices_of(value, "steps")
    ends = (found.start or 0, found.stop or 0) if isinstance(found, slice) else found
    if min(ends) < 0:
        raise SiteError(f"steps={value!r}: steps count from 0, negative ones do not exist")
    if isinstance(found, slice) and found.stop is not None and found.stop <= (found.start or 0):
        raise SiteError(f"steps={value!r} selects nothing; leave steps= out to select all")
    return found


def heads_of(value: object) -> Heads | None:
    """Normalise `heads=`: indices, or (block, head) pairs as analyses return them."""
    if value is None:
        return None
    if (
        isinstance(value, Iterable)
        and not isinstance(value, str | range)
        and _integer(value) is None
    ):
        items = list(value)
        if items and all(isinstance(item, tuple | list) and len(item) == 2 for item in items):
            return tuple(dict.fromkeys(_pair(block, head, value) for block, head in items))
        value = items
    if isinstance(value, slice):
        if value.stop is None:
            raise SiteError(f"heads={value!r} has no end; give one, or leave heads= out for all")
        indices_of(value, "heads")
        value = range(value.start or 0, value.stop, value.step or 1)
    found = indices_of(value, "heads")
    return tuple(range(found.start, found.stop)) if isinstance(found, slice) else found


def _pair(block: object, head: object, given: object) -> tuple[int, int]:
    found = (_integer(block), _integer(head))
    if None in found or isinstance(block, bool) or isinstance(head, bool):
        raise SiteError(
            f"heads={given!r}: ({block!r}, {head!r}) is no (block, head) pair of whole numbers"
        )
    return found  # type: ignore[return-value]


def branch_of(value: object) -> str | None:
    """Normalise `branch=`; other words for the two branches of every model are refused at once."""
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        raise SiteError(f"branch= takes one branch's name, or None for each; got {value!r}")
    meant = {other: name for name, others in SYNONYMS.items() for other in (name, *others)}
    known = meant.get(value.strip().lower(), value)
    if known == value:
        return value
    raise SiteError(f"branch={value!r}: this branch is called {known!r}, give branch={known!r}")


def tokens_of(value: object, what: str) -> Tokens | None:
    """Normalise `query=`, `key=` or `pos=`."""
    if value is None or isinstance(value, Tokens):
        return value
    if isinstance(value, str):
        return Tokens(stream=value) if value in STREAMS else Tokens(words=_words((value,), what))
    if isinstance(value, tuple) and len(value) == 2 and value[0] in STREAMS:
        stream, rest = value
        if isinstance(rest, str):
            return Tokens(stream=stream, words=_words((rest,), what))
        inner = tokens_of(rest, what)
        if inner is None or inner.stream is not None:
            raise SiteError(
                f"{what}={value!r}: beside a stream stand words or indices of it; the stream "
                f"alone is {stream!r}"
            )
        return Tokens(stream=stream, words=inner.words, indices=inner.indices)
    if isinstance(value, Iterable) and not isinstance(value, range) and _integer(value) is None:
        items = list(value)
        if items and all(isinstance(item, str) for item in items):
            return Tokens(words=_words(tuple(items), what))
        value = items
    return Tokens(indices=indices_of(value, what))


def _words(words: tuple[str, ...], what: str) -> tuple[str, ...]:
    if any(not word.strip() for word in words):
        raise SiteError(f"{what}={words!r}: an empty word selects nothing")
    streams = [word for word in words if word in STREAMS]
    if len(words) > 1 and streams:
        raise SiteError(
            f"{what}={list(words)!r} mixes the stream {streams[0]!r} with others; leave {what}= "
            f'out for all streams, or give one; the word itself is ("txt", {streams[0]!r})'
        )
    return words


def contains(indices: Indices | None, number: int) -> bool:
    """Whether a normalised selection of steps has this one."""
    if indices is None:
        return True
    if isinstance(indices, slice):
        start = indices.start or 0
        before_stop = indices.stop is None or number < indices.stop
        return number >= start and before_stop and (number - start) % (indices.step or 1) == 0
    return number in indices
