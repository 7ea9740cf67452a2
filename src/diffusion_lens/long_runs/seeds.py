"""One meaning of `seeds=` wherever many samples are meant."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from diffusion_lens.border import LARGEST_SIZE
from diffusion_lens.errors import DiffusionLensError


def listed_seeds(seeds: Any, *, error: type[DiffusionLensError]) -> tuple[int, ...]:
    """The seed of each sample.

    Args:
        seeds: How many samples, with the seeds from 0 on; or the seed of each.
        error: What to raise.

    Raises:
        error: If there is none, one comes twice, one is no whole number from 0 on, or there are too
            many to be listed.
    """
    try:
        if isinstance(seeds, bool | str):
            raise TypeError
        several = hasattr(seeds, "__iter__") and getattr(seeds, "ndim", 1)
        if not several and operator.index(seeds) > LARGEST_SIZE:  # a list of them takes memory
            raise TypeError
        chosen = tuple(map(operator.index, seeds if several else range(operator.index(seeds))))
    except TypeError:
        chosen = ()
    if not chosen or len(set(chosen)) != len(chosen) or min(chosen) < 0:
        raise error(
            f"seeds={seeds!r}: give how many samples (8 are the seeds 0 to 7; at most "
            f"{LARGEST_SIZE:,}), or the different seeds themselves, such as range(4, 8); the one "
            "seed 4 is seeds=[4]"
        )
    return chosen


def refuse_one_seed(settings: Mapping[str, Any], *, error: type[DiffusionLensError]) -> None:
    """Refuse `seed=` among the pipeline's arguments, where samples come from `seeds=`.

    Args:
        settings: The arguments.
        error: What to raise.

    Raises:
        error: If it is there.
    """
    if "seed" in settings:
        raise error(f"seed={settings['seed']!r}: samples come from seeds=, which takes many")
