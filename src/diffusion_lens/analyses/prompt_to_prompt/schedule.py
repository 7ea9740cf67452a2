"""At which steps which of a target's columns are edited."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_lens.errors import RunError

Range = float | tuple[float, float]
"""A share of the steps from the first on, or from one share to another, in [0, 1]."""


def bounds(given: Any, *, argument: str) -> tuple[float, float]:
    """A range as its two ends.

    Raises:
        RunError: If it is no number and no pair that ascends.
    """
    ends = (0.0, given) if isinstance(given, Real) else tuple(given)
    if len(ends) != 2 or ends[0] > ends[1]:
        raise RunError(
            f"{argument}={given!r} is no range of steps: give a share in [0, 1], or where it "
            "begins and ends, such as (0.2, 0.8)"
        )
    return float(ends[0]), float(ends[1])


def cross_steps(
    default: Any,
    words: Mapping[str, Any],
    columns: list[dict[str, tuple[int, ...]]],
    *,
    steps: int,
    length: int,
) -> Float[Tensor, "step target token"]:
    """1 where the edited pattern is used, 0 where the target's own is.

    The limits are `int(share * (steps + 1))`, as in the released code, whose scheduler makes one
    evaluation more than it has steps.

    Args:
        default: The range of every column.
        words: Ranges of single words.
        columns: For each target the tokens of those words.
        steps: `num_inference_steps`.
        length: Number of tokens.

    Raises:
        RunError: If a range is none.

    Source: arXiv 2208.01626, section 3.2.
    """
    alpha = torch.zeros(steps + 1, len(columns), length)
    first, last = _within(bounds(default, argument="cross_replace"), steps + 1)
    alpha[first:last] = 1
    for word, share in words.items():
        first, last = _within(bounds(share, argument=f"word_ranges[{word!r}]"), steps + 1)
        for target, found in enumerate(columns):
            tokens = list(found.get(word, ()))
            alpha[:, target, tokens] = 0
            alpha[first:last, target, tokens] = 1
    return alpha


def self_steps(given: Any, *, steps: int) -> range:
    """The steps at which self-attention is the source's: `int(share * steps)`.

    Raises:
        RunError: If the range is none.
    """
    return range(*_within(bounds(given, argument="self_replace"), steps))


def _within(ends: tuple[float, float], count: int) -> tuple[int, int]:
    return int(ends[0] * count), int(ends[1] * count)
