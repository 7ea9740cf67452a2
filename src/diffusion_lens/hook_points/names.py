"""Patterns over hook-point names: `*` is one dotted part, `**` any number of them."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence

from diffusion_lens.errors import UnknownHookPointError, closest, listing
from diffusion_lens.showing.one_line import counted

NamePattern = str | Callable[[str], bool]

SECOND = "denoiser2."
"""What the names of a pipeline's second denoiser begin with; those of the first have no prefix."""


def which_denoiser(name: str) -> str:
    """The prefix of the denoiser that a name, or a pattern over names, is of."""
    return SECOND if name.startswith(SECOND) else ""


@functools.lru_cache(maxsize=1024)
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Turn a name pattern into a regular expression over whole names.

    `*` inside a part stands for any characters of that part; `**` as a part of its own stands for
    any number of parts, none included. More stars in a row select nothing else.
    """
    segments: list[list[str]] = [[]]
    for part in pattern.split("."):
        if part == "**":
            segments.append([])
        else:
            segments[-1].append(_part(part))
    first, *rest = (r"\.".join(parts) for parts in segments)
    if not rest:
        return re.compile(first)
    # A segment is taken where it comes first, for good (atomic groups): no later place matches
    # more, and trying them all takes a time that grows with a power of the number of stars.
    before = [first] if first else []
    before += [rf"(?:[^.]+\.)*?{one}" for one in rest[:-1] if one]
    if rest[-1]:
        ends, last = [r"\."] * len(before), rf"(?:[^.]+\.)*{rest[-1]}"
    else:  # a `**` at the end may stand for no part, and then there is no dot
        ends, last = [*[r"\."] * (len(before) - 1), r"(?:\.|\Z)"], ".*"
    between = "".join(f"(?>{one}{end})" for one, end in zip(before, ends, strict=False))
    return re.compile(between + last)


def _part(part: str) -> str:
    """The expression of one dotted part; what stands between two stars is a segment likewise."""
    first, *rest = re.sub(r"\*+", "*", part).split("*")
    if not rest:
        return re.escape(first)
    between = "".join(rf"(?>[^.]*?{re.escape(text)})" for text in rest[:-1])
    return f"{re.escape(first)}{between}[^.]*{re.escape(rest[-1])}"


_BLOCK = re.compile(r"(.*?(?:blocks|refiner)\.)(\d+)\.")


def block_of(name: str) -> tuple[str, int] | None:
    """Which block a name is of, as what stands before its number and the number; or None."""
    found = _BLOCK.match(name)
    return None if found is None else (found.group(1), int(found.group(2)))


def is_pattern(name: str) -> bool:
    """Whether a name has wildcards."""
    return "*" in name


def matches(pattern: NamePattern, name: str) -> bool:
    """Whether `name` is matched by a name, a pattern or a predicate."""
    if callable(pattern):
        return bool(pattern(name))
    return compile_pattern(pattern).fullmatch(name) is not None


def match_names(
    pattern: NamePattern | Iterable[NamePattern], names: Sequence[str], *, model: str = "this model"
) -> list[str]:
    """All names that a pattern selects, in the order of `names`.

    Args:
        pattern: A name, a pattern with `*` and `**`, a predicate over names, or several of these.
        names: The valid names.
        model: What to call the model in an error.

    Raises:
        UnknownHookPointError: If one of the patterns matches nothing; the message shows the
            closest names.
    """
    if callable(pattern) or isinstance(pattern, str):
        pattern = [pattern]
    wanted: set[str] = set()
    known = set(names)
    for one in pattern:
        if isinstance(one, str) and one in known:
            wanted.add(one)
            continue
        found = [name for name in names if matches(one, name)]
        if not found:
            raise UnknownHookPointError(_nothing_matches(one, names, model))
        wanted.update(found)
    return [name for name in names if name in wanted]


def _nothing_matches(pattern: NamePattern, names: Sequence[str], model: str) -> str:
    asked = repr(pattern) if isinstance(pattern, str) else f"the predicate {pattern!r}"
    near = closest(pattern.replace("*", "0"), names) if isinstance(pattern, str) else []
    hint = f"Closest: {listing(near)}. " if near else ""
    if isinstance(pattern, str) and pattern.endswith(".*") and pattern.count("*") == 1:
        hint += f"`*` is one dotted part; {pattern + '*'!r} matches any number. "
    return (
        f"no hook point matches {asked} in {model} ({counted(len(names), 'hook point')}). "
        f"{hint}List them with `model.hook_names()`."
    )
