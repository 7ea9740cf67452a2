"""Rows are copies, in the order of the axes; what cannot be told apart is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diffusion_lens import HookContext
from diffusion_lens.activations import gathering
from diffusion_lens.activations.choosing import TokenChoice
from diffusion_lens.activations.gathering import Gatherer, Record, Sample, record_of
from diffusion_lens.errors import StoreError

SAMPLES = tuple(Sample(number, number, 3, "a cat") for number in range(2))


def context(*axes: str, **more: Any) -> HookContext:
    return HookContext("here", 0, "img", axes, step=0, branch="cond", **more)


def gatherer(given: list[Record], tokens: str | int = "all") -> Gatherer:
    made = Gatherer(TokenChoice.of(tokens), None, given.append)
    made.begin(SAMPLES)
    return made


@pytest.mark.parametrize("tokens", ["all", 2, "grid:1x1"])
def test_rows_are_no_views_of_the_model(tokens: str | int) -> None:
    value = torch.arange(2 * 3 * 2 * 4.0).view(2, 3, 2, 4)
    whole = value.clone()
    hook = context("batch", "channel", "height", "width")
    record = record_of(value, hook, gatherer([], tokens))
    value.zero_()
    expected = torch.stack(
        [
            whole[sample, :, at // 4, at % 4]
            for sample, places in enumerate(record.positions.tolist())
            for at in places
        ]
    )
    assert torch.equal(record.values, expected)
    assert record.grid == "2x4"


def test_what_the_hook_owns_is_not_copied_again() -> None:
    value = torch.ones(2, 4, 5)
    axes = ("batch", "other", "d_model")
    owned = record_of(value, context(*axes, owned=True), gatherer([]))
    assert owned.values.data_ptr() == value.data_ptr()
    copied = record_of(value, context(*axes), gatherer([]))
    value.zero_()
    assert copied.values.all()
    assert owned.positions.tolist() == [[-1], [-1]]
    assert owned.values.shape == (2, 20)


def test_rows_are_handed_on_before_they_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "PENDING", 2 * 4 * 5 * 4 * 2)
    given: list[Record] = []
    one = gatherer(given)
    for step in range(3):
        hook = HookContext("here", 0, None, ("batch", "x", "d"), step=step, branch="cond")
        one.take(torch.ones(2, 4, 5), hook, 0)
    assert [record.step for record in given] == [0, 1]
    one.drain()
    assert [record.step for record in given] == [0, 1, 2]


def test_samples_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(StoreError, match=r"here has 4 entries along batch .* for 2 samples"):
        record_of(torch.ones(4, 3), context("batch", "d_emb"), gatherer([]))
    with pytest.raises(StoreError, match=r"has shape \(2, 3\) here and the axes"):
        record_of(torch.ones(2, 3), context("batch", "pos", "d_model"), gatherer([]))
