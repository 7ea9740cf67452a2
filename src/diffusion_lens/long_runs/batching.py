"""A run of many prompts as runs of a few: what belongs to a prompt goes where the prompt goes.

Texts, embeddings, latents, generators, images and seeds are split; everything else is given to each
part as it is. Which argument is which goes by its name: a list as long as the prompts may as well
be one of timesteps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from diffusion_lens import Run
from diffusion_lens.errors import DiffusionLensError, RunError
from diffusion_lens.showing.one_line import counted

TEXTS = re.compile(r"(negative_)?prompt(_\d+)?")
EMBEDDINGS = re.compile(r"(negative_)?(pooled_)?prompt_(embeds|attention_mask)(_mask|_\d+)*")
IMAGES = re.compile(r"((control|mask|masked|conditioning)_)?image(_latents)?")
FOR_EACH_IMAGE = ("latents", "generator")


def batches(
    run: Run, size: int, *, start: int = 0, error: type[DiffusionLensError] = RunError
) -> Iterator[tuple[list[int], Run]]:
    """The prompts of a run, a few at a time.

    Args:
        run: Prompts as words, and settings. Texts, embeddings, images and seeds may be one for all
            prompts or one for each; latents and several generators are one for each image.
        size: How many prompts at once.
        start: The number of the first prompt.
        error: What to raise.

    Returns:
        The numbers of the prompts, and their run, batch after batch.

    Raises:
        error: If a setting does not pair with the prompts; at once, before the first run.
    """
    if size < 1:
        raise error(f"batch_size={size}: give 1 or more")
    total = len(run.prompts)
    part_of(run, range(total), error=error)
    parts = (list(range(at, min(at + size, total))) for at in range(start, total, size))
    return ((numbers, part_of(run, numbers, error=error)) for numbers in parts)


def part_of(run: Run, numbers: Sequence[int], *, error: type[DiffusionLensError] = RunError) -> Run:
    """The run of some of a run's prompts.

    Args:
        run: Prompts as words, and settings.
        numbers: Which prompts, counted from 0.
        error: What to raise.

    Raises:
        error: If a setting or the seeds do not pair with the prompts.
    """
    total = len(run.prompts)
    if not total:
        raise error("prompts as words are needed to make batches of them; none were given")
    changes: dict[str, Any] = {}
    try:
        for name, value in run.settings.items():
            changes[name] = _picked(name, value, numbers, run)
        if isinstance(run.seed, tuple):
            each = run.images_per_prompt if len(run.seed) != total else 1
            changes["seed"] = _rows("seed", run.seed, numbers, total * each, each)
    except RunError as unpaired:
        raise error(str(unpaired)) from None
    return run.with_(prompt=[run.prompts[at] for at in numbers], **changes)


def _picked(name: str, value: Any, numbers: Sequence[int], run: Run) -> Any:
    """A setting as some prompts need it."""
    total, each = len(run.prompts), run.images_per_prompt
    if TEXTS.fullmatch(name) and isinstance(value, str):
        return [value] * len(numbers)
    if name in FOR_EACH_IMAGE and isinstance(value, Tensor | list | tuple):
        return _rows(name, value, numbers, total * each, each)
    shared = TEXTS.fullmatch(name) or EMBEDDINGS.fullmatch(name)
    if not shared and not IMAGES.fullmatch(name):
        return value
    if isinstance(value, Tensor | np.ndarray):
        if not shared and value.ndim < 4:
            return value  # one image
    elif not isinstance(value, list | tuple):
        return value
    if len(value) == 1:
        return value if not shared else _rows(name, value, [0] * len(numbers), 1, 1)
    return _rows(name, value, numbers, total, 1)


def _rows(name: str, value: Any, numbers: Sequence[int], total: int, each: int) -> Any:
    """The entries of some prompts, `each` for every one."""
    if len(value) != total:
        what = "image" if each > 1 else "prompt"
        raise RunError(
            f"{name}= has {counted(len(value), 'row')} for {counted(total, what)}; give one for "
            "each, in the order of the prompts (batches are made of them here)"
        )
    rows = [number * each + image for number in numbers for image in range(each)]
    if isinstance(value, Tensor | np.ndarray):
        return value[rows]
    return [value[row] for row in rows]
