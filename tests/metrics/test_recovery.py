"""Recovery, projection, distance, bootstrap intervals and rank correlation, by hand."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from diffusion_lens.metrics import intervals
from diffusion_lens.metrics.intervals import bootstrap_interval, rank_correlation
from diffusion_lens.metrics.recovery import distance, normalised, projection, recovery, weights_of

BASE = torch.tensor([[0.0, 0.0]])
SOURCE = torch.tensor([[2.0, 0.0]])


@pytest.mark.parametrize(
    ("value", "gone", "along"),
    [
        pytest.param([0.0, 0.0], 0.0, 0.0, id="base"),
        pytest.param([2.0, 0.0], 1.0, 1.0, id="source"),
        pytest.param([1.0, 0.0], 0.75, 0.5, id="half way"),
        pytest.param([0.0, 2.0], -1.0, 0.0, id="at right angles"),
        pytest.param([4.0, 0.0], 0.0, 2.0, id="as far beyond"),
        pytest.param([-2.0, 0.0], -3.0, -1.0, id="backwards"),
    ],
)
def test_recovery_and_projection_by_hand(value: list[float], gone: float, along: float) -> None:
    given = torch.tensor([value])
    assert recovery(given, SOURCE, BASE).item() == pytest.approx(gone)
    assert projection(given, SOURCE, BASE).item() == pytest.approx(along)


@pytest.mark.parametrize("score", [recovery, projection], ids=["recovery", "projection"])
def test_without_a_difference_there_is_no_score(score: partial[Tensor]) -> None:
    same = torch.tensor([[1.0, 1.0], [1.0, 3.0]])
    other = torch.tensor([[1.0, 1.0], [1.0, 2.0]])
    found = score(same, same, other)
    assert found[0].isnan() and found[1] == 1.0


def test_a_mask_leaves_the_rest_out() -> None:
    base, source = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    value = base.clone()
    value[..., :2] = 1.0
    mask = torch.zeros(8, 8)
    mask[:, :4] = 1.0
    assert recovery(value, source, base, mask=mask).item() == 1.0
    assert recovery(value, source, base, mask=1 - mask).item() == 0.0
    assert recovery(value, source, base).item() == 0.5
    assert distance(value, source, mask=mask).item() == 0.0
    assert distance(value, source).item() == pytest.approx(0.5**0.5)


def test_masks_of_packed_latents_and_masks_that_do_not_fit() -> None:
    packed = torch.zeros(2, 16, 3)
    assert weights_of(torch.ones(4, 4), packed).shape == (1, 16, 1)
    assert weights_of(torch.ones(16), packed).shape == (1, 16, 1)
    with pytest.raises(ValueError, match=r"a mask of shape \(5, 5\) does not fit"):
        weights_of(torch.ones(5, 5), packed)


def test_scores_in_units_of_their_difference() -> None:
    found = normalised(
        torch.tensor([3.0, 5.0, 1.0]),
        source=torch.tensor([4.0, 4.0, 1.0]),
        base=torch.tensor([2.0, 2.0, 1.0]),
    )
    assert found[:2].tolist() == [0.5, 1.5] and found[2].isnan()


def test_the_interval_of_equal_samples_is_a_point_and_missing_ones_do_not_count() -> None:
    samples = torch.tensor([[2.0, 2.0, 2.0, torch.nan], [torch.nan] * 4])
    low, high = bootstrap_interval(samples)
    assert low[0] == high[0] == 2.0
    assert low[1].isnan() and high[1].isnan()


def test_the_interval_is_about_that_of_the_normal_distribution() -> None:
    samples = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low, high = bootstrap_interval(samples)
    error = samples.std() / 20
    assert (samples.mean() - 1.96 * error - low).abs() < 0.15 * error
    assert (samples.mean() + 1.96 * error - high).abs() < 0.15 * error
    narrow = bootstrap_interval(samples, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_intervals_of_many_entries_are_those_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    whole = bootstrap_interval(samples)
    monkeypatch.setattr(intervals, "AT_ONCE", 3)
    for parts, together in zip(bootstrap_interval(samples), whole, strict=True):
        torch.testing.assert_close(parts, together)
    alone = bootstrap_interval(samples[1, 4])
    assert torch.stack(alone).tolist() == pytest.approx([float(end[1, 4]) for end in whole])


def test_rank_correlation_by_hand() -> None:
    rising = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert rank_correlation(rising, rising**3) == pytest.approx(1.0)
    assert rank_correlation(rising, -rising) == pytest.approx(-1.0)
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5).
    assert rank_correlation(torch.tensor([0.0, 5.0, 5.0, 9.0]), rising) == pytest.approx(0.9486833)
    missing = torch.tensor([1.0, torch.nan, 0.0, 7.0])
    assert rank_correlation(missing, rising) == pytest.approx(0.5)
    assert rank_correlation(torch.ones(1), torch.ones(1)) != rank_correlation(rising, rising)
