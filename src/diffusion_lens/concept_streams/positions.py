"""Rotary embeddings and the like cut for a run with concepts in the place of the text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from diffusion_lens.architectures.spec import Placed, Positions
from diffusion_lens.errors import ConceptError


def placed_again(
    given: Mapping[str, Any],
    placed: Placed,
    counts: Mapping[str, tuple[int, int]],
    position: int,
) -> dict[str, Any]:
    """The arguments that hold something for each token, for the second run.

    Args:
        given: The arguments of the main pass.
        placed: Which of them, and how.
        counts: For each stream, its tokens in the main pass and in the second run.
        position: The text token whose place every concept takes.

    Raises:
        ConceptError: If the text has no such token.
    """
    changed: dict[str, Any] = {}
    for name, entries in placed.items():
        value = given.get(name)
        if value is None:
            continue
        for entry in entries:
            value = _along(value, entry, counts, position)
        changed[name] = value
    return changed


def _along(
    value: Any, entry: Positions, counts: Mapping[str, tuple[int, int]], position: int
) -> Any:
    if isinstance(value, tuple | list):
        inside = replace(entry, part=None)
        parts = [
            _along(part, inside, counts, position) if entry.part in (None, at) else part
            for at, part in enumerate(value)
        ]
        return type(value)(parts)
    return None if value is None else _cut(value, entry, counts, position)


def _cut(
    value: Tensor, entry: Positions, counts: Mapping[str, tuple[int, int]], position: int
) -> Tensor:
    parts, start = [], 0
    for name in entry.streams:
        before, after = counts[name]
        if name == "txt":
            _refuse_absent(position, before)
            one = value.narrow(entry.axis, start + position % before, 1)
            parts.append(one.repeat_interleave(after, entry.axis))
        else:
            parts.append(value.narrow(entry.axis, start, after))
        start += before
    return torch.cat(parts, entry.axis)


def _refuse_absent(position: int, count: int) -> None:
    if not -count <= position < count:
        raise ConceptError(
            f"position={position} names a text token whose place concepts take, and the text of "
            f"this run has {count} tokens; give one of them, or raise max_sequence_length="
        )
