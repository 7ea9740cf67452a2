"""The prompts with which the paper weakens heads, for nine of its concepts.

Source: Cross-Attention Head Position Patterns Can Align with Human Visual Concepts, arXiv
2412.02237, appendix C, and its repository (the spelling "ballon" is theirs).
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

from diffusion_lens.border import public
from diffusion_lens.errors import ConceptError, closest

PUBLISHED_SEEDS = (10, 20, 30)
"""The seeds that the paper draws every prompt with."""


class WeakeningPrompt(NamedTuple):
    """A prompt and the word in it whose presence in the image is scored."""

    prompt: str
    item: str


@cache
def _templates() -> dict[str, dict]:
    path = Path(__file__).with_name("templates.json")
    return {one["concept"]: one for one in json.loads(path.read_text(encoding="utf-8"))}


def weakening_concepts() -> tuple[str, ...]:
    """The concepts with published prompts."""
    return tuple(_templates())


@public
def weakening_prompts(concept: str) -> tuple[WeakeningPrompt, ...]:
    """The published prompts of a concept: every item with every carrier.

    Args:
        concept: One of `weakening_concepts()`.

    Raises:
        ConceptError: If there are none; the message names the closest.
    """
    if concept not in _templates():
        near = closest(str(concept), _templates())
        hint = f" Closest: {near[0]!r}." if near else ""
        raise ConceptError(
            f"no published weakening prompts for {concept!r}.{hint} There are some for "
            f"{list(_templates())}; for others give prompts of your own"
        )
    found = _templates()[concept]
    return tuple(
        WeakeningPrompt(found["template"].format(item=item, carrier=carrier), item)
        for item in found["items"]
        for carrier in found["carriers"] or [""]
    )
