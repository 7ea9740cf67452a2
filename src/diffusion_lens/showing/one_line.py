"""How a result says in one line what it is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

LONGEST = 60
"""Characters of a prompt that are shown."""

FIRST_PROMPT = re.compile(r"""Run\((\()?('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")(, ['"])?""")


def one_line(
    result: object, *facts: str, made_by: Mapping[str, Any] | None = None, look: Sequence[str]
) -> str:
    """The `repr` of a result: `Name(model: fact, fact; .way(), .way())`.

    Args:
        result: The result, for the name of its class.
        *facts: What it is of, and its sizes; empty ones are left out.
        made_by: What made it; names the model.
        look: How to look at it.
    """
    model = model_of(made_by or {})
    said = ", ".join(fact for fact in facts if fact)
    text = f"{model}: {said}" if model else said
    return " ".join(f"{type(result).__name__}({text}; {', '.join(look)})".split())


def model_of(made_by: Mapping[str, Any]) -> str:
    """The name of the model; empty where it is not known, several joined by a plus sign."""
    sources = made_by.get("merged") or [made_by]
    return " + ".join(
        dict.fromkeys(_placed(str(one["model"])) for one in sources if "model" in one)
    )


def _placed(name: str) -> str:
    """A folder's last two names; every other name as it is."""
    path = PurePath(name)
    return "/".join(path.parts[-2:]) if path.is_absolute() else name


def prompt_of(made_by: Mapping[str, Any]) -> str:
    """The first prompt of the run that made a result, shortened; empty where there is none."""
    found = FIRST_PROMPT.match(str(made_by.get("run", "")))
    return f"{_cut(found[2])}{', …' if found[3] else ''}" if found else ""


def short(texts: str | Sequence[str]) -> str:
    """One prompt in quotation marks, shortened; of several the first."""
    if isinstance(texts, str):
        return _cut(repr(texts))
    return f"{_cut(repr(texts[0]))}{', …' if len(texts) > 1 else ''}" if len(texts) else ""


def counted(count: int, noun: str) -> str:
    """`1 image`, `2 images`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _cut(quoted: str) -> str:
    return quoted if len(quoted) <= LONGEST else f"{quoted[: LONGEST - 2]}…{quoted[-1]}"
