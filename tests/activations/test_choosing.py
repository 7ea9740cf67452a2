"""Which tokens are chosen, worked out by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion_lens.activations.choosing import TokenChoice
from diffusion_lens.errors import StoreError


def chosen(tokens: str | int, total: int, grid: tuple[int, ...] | None, first: int = 0) -> list:
    found = TokenChoice.of(tokens).of_sample(total, grid, first, sample="3 a cat", name="here")
    return [] if found is None else found.tolist()


def test_centres_by_hand() -> None:
    # The cells of 2 x 3 in a grid of 4 x 6 have their centres at rows 1, 3 and columns 1, 3, 5.
    assert chosen("grid:2x3", 24, (4, 6)) == [7, 9, 11, 19, 21, 23]
    assert chosen("grid:4x6", 24, (4, 6)) == list(range(24))
    assert chosen("grid:1x1", 9, (3, 3)) == [4]
    assert chosen("grid:1x1", 20, (3, 3), first=5) == [9]
    assert chosen("grid:1x1", 18, (2, 3, 3)) == [4, 13]  # in each frame
    assert chosen("grid:1x1x1", 27, (3, 3, 3)) == [13]


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20), st.integers(1, 20))
def test_centres_lie_in_cells_of_their_own(h: int, w: int, high: int, wide: int) -> None:
    high, wide = min(h, high), min(w, wide)
    found = chosen(f"grid:{high}x{wide}", h * w, (h, w))
    cells = [((at // w + 0.5) * high // h, (at % w + 0.5) * wide // w) for at in found]
    assert len(set(found)) == high * wide
    assert sorted(found) == found
    if h % high == 0 and w % wide == 0:
        assert len(set(cells)) == high * wide


@given(st.integers(1, 50), st.integers(1, 60))
def test_a_drawn_choice_is_in_order_and_repeats(count: int, total: int) -> None:
    found = chosen(count, total, None)
    assert found == chosen(count, total, None)
    if count >= total:
        assert found == []  # all of them
    else:
        assert found == sorted(set(found))
        assert len(found) == count
        assert max(found) < total


def test_other_samples_have_other_choices() -> None:
    choice = TokenChoice.of(8)
    found = [
        choice.of_sample(64, None, None, sample=f"{seed} a cat", name="here") for seed in range(40)
    ]
    places = torch.stack([one for one in found if one is not None])
    assert len({tuple(one.tolist()) for one in places}) == 40
    assert 20 < places.float().mean() < 43  # of 64 places, evenly


@pytest.mark.parametrize("tokens", ["grid", "grid:8", "grid:0x4", "grid:2x2x2x2", -1, "every"])
def test_what_is_no_choice(tokens: str | int) -> None:
    with pytest.raises(StoreError, match="give 'all', how many"):
        TokenChoice.of(tokens)


def test_its_text_is_what_was_asked() -> None:
    assert [str(TokenChoice.of(one)) for one in ("all", 5, "grid:2x3")] == ["all", "5", "grid:2x3"]
