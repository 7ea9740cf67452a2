"""How far a value has come from a base to a source: 0 is the base, 1 is the source."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from diffusion_lens.border import Positive, public
from diffusion_lens.errors import ArgumentError

TINY = 1e-10
"""Bases and sources whose squared difference is below this share of the source are the same."""


@public
def recovery(
    value: Float[Tensor, "batch ..."],
    source: Float[Tensor, "batch ..."],
    base: Float[Tensor, "batch ..."],
    *,
    mask: Tensor | None = None,
) -> Float[Tensor, " batch"]:
    """How much of the squared distance between base and source is gone.

    1 - |value - source|² / |base - source|². What leads elsewhere counts against it, so that it
    can be far below 0; a small step straight to the source counts about twice.

    Args:
        value: What to score, such as latents or predictions.
        source: Where 1 is.
        base: Where 0 is.
        mask: Weights from 0 to 1 of the places that count; see `weights_of`.

    Returns:
        At most 1; nan where base and source are the same.
    """
    whole = _squared(base - source, mask)
    gone = 1 - _squared(value - source, mask) / whole
    return torch.where(_differs(whole, source, mask), gone, torch.nan)


@public
def projection(
    value: Float[Tensor, "batch ..."],
    source: Float[Tensor, "batch ..."],
    base: Float[Tensor, "batch ..."],
    *,
    mask: Tensor | None = None,
) -> Float[Tensor, " batch"]:
    """How far along the line from base to source a value lies.

    <value - base, source - base> / |source - base|². Linear in the value, so that effects of parts
    that do not interact add up; blind to whatever is at right angles to the line.

    Args:
        value: What to score, such as latents or predictions.
        source: Where 1 is.
        base: Where 0 is.
        mask: Weights from 0 to 1 of the places that count; see `weights_of`.

    Returns:
        Unbounded; nan where base and source are the same.
    """
    whole = _squared(base - source, mask)
    along = _weighted((value - base) * (source - base), mask) / whole
    return torch.where(_differs(whole, source, mask), along, torch.nan)


@public
def distance(
    value: Float[Tensor, "batch ..."],
    source: Float[Tensor, "batch ..."],
    *,
    mask: Tensor | None = None,
) -> Float[Tensor, " batch"]:
    """Root of the mean squared difference from a source, over the places that count.

    Args:
        value: What to score, such as predicted clean latents.
        source: What to compare with.
        mask: Weights from 0 to 1 of the places that count; see `weights_of`.

    Returns:
        In units of the values, at least 0.
    """
    count = _weighted(torch.ones_like(value), mask)
    return (_squared(value - source, mask) / count).sqrt()


@public
def normalised(
    score: Float[Tensor, "*axes"],
    *,
    source: Float[Tensor, "*axes"],
    base: Float[Tensor, "*axes"],
    least: Positive = 1e-6,
) -> Float[Tensor, "*axes"]:
    """Any score in units of the difference between source and base.

    Args:
        score: Scores.
        source: Scores of the source, where 1 is.
        base: Scores of the base, where 0 is.
        least: The smallest difference between source and base that can be divided by.

    Returns:
        (score - base) / (source - base); nan where the difference is smaller than `least`.
    """
    whole = source - base
    return torch.where(whole.abs() >= least, (score - base) / whole, torch.nan)


@public
def weights_of(mask: Tensor, like: Float[Tensor, "batch ..."]) -> Tensor:
    """Weights of a mask over latents, or over anything of that shape.

    Args:
        mask: Axes height, width of any size, brought to that of the latents by averaging; for
            packed latents (batch, pos, channel) axes pos, or height, width with one entry for each
            position.
        like: What it shall be multiplied with.

    Returns:
        Weights that broadcast over it.

    Raises:
        ArgumentError: If the mask does not fit.
    """
    mask = mask.to(like)
    if like.ndim == 4 and mask.ndim == 2:
        height, width = like.shape[-2:]
        return F.adaptive_avg_pool2d(mask[None, None], (height, width))
    if like.ndim == 3 and mask.numel() == like.shape[1]:
        return mask.reshape(1, -1, 1)
    raise ArgumentError(
        f"a mask of shape {tuple(mask.shape)} does not fit values of shape {tuple(like.shape)}: "
        "give axes (height, width) for values with axes (batch, channel, height, width), and one "
        "entry for each position for those with axes (batch, pos, channel)"
    )


def _squared(difference: Tensor, mask: Tensor | None) -> Tensor:
    return _weighted(difference.square(), mask)


def _weighted(value: Tensor, mask: Tensor | None) -> Tensor:
    weighted = value if mask is None else value * weights_of(mask, value)
    return weighted.flatten(1).sum(1)


def _differs(whole: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
    return whole > TINY * _squared(source, mask)
