"""Bootstrap intervals of means, and rank correlation."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_lens.border import Count, Index, Level, public

AT_ONCE = 1024
"""Entries whose resampled means are in memory together: heads x steps come to tens of thousands."""


@public
def bootstrap_interval(
    samples: Float[Tensor, "*axes sample"],
    *,
    level: Level = 0.95,
    resamples: Count = 2000,
    seed: Index = 0,
) -> tuple[Float[Tensor, "*axes"], Float[Tensor, "*axes"]]:
    """Percentile interval of the mean over the last axis, by drawing samples with replacement.

    With few samples it is too narrow. The same draws serve every entry, so that entries can be
    compared.

    Args:
        samples: Values; nan for those that are missing.
        level: Share of resampled means inside, in (0, 1).
        resamples: How often samples are drawn.
        seed: Of the draws.

    Returns:
        Lower and upper ends; nan where an entry has fewer than two samples, of which none says how
        far others may lie from it.
    """
    count = samples.shape[-1]
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples)
    weights = torch.from_numpy(drawn).to(torch.float64)
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    ends = torch.empty(2, samples.shape[:-1].numel(), dtype=samples.dtype)
    rows = samples.reshape(-1, count)
    for start in range(0, len(rows), AT_ONCE):
        some = rows[start : start + AT_ONCE]
        sums = some.nan_to_num().to(torch.float64) @ weights.T
        means = sums / ((~some.isnan()).to(torch.float64) @ weights.T)  # 0 / 0: no draw is there
        ends[:, start : start + AT_ONCE] = torch.nanquantile(means, tails, dim=-1)
    ends[:, (~rows.isnan()).sum(1) < 2] = torch.nan
    low, high = ends.reshape(2, *samples.shape[:-1])
    return low, high


@public
def rank_correlation(first: Float[Tensor, "*axes"], second: Float[Tensor, "*axes"]) -> float:
    """Spearman's rank correlation of the entries that both have.

    Args:
        first: Values; nan for those that are missing. Ties share their mean rank.
        second: Values, likewise.

    Returns:
        In [-1, 1]; nan with fewer than two common entries, or where one side is constant.
    """
    there = ~(first.isnan() | second.isnan())
    ranks = [_ranks(values[there]) for values in (first, second)]
    centred = [values - values.mean() for values in ranks]
    length = centred[0].norm() * centred[1].norm()
    return float(centred[0] @ centred[1] / length) if len(ranks[0]) > 1 else float("nan")


def _ranks(values: Tensor) -> Tensor:
    _, place, counts = values.double().unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[place]
