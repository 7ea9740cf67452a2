"""What is said of a choice that is none."""

from __future__ import annotations

import pytest

from diffusion_lens.errors import ConceptError, refuse_unknown


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("meen", r"^over='meen' is none of \['mean', 'sum'\]\. Closest: 'mean'\.$"),
        ("zzz", r"^over='zzz' is none of \['mean', 'sum'\]\.$"),
        (3, r"^over=3 is none of \['mean', 'sum'\]\.$"),
    ],
)
def test_the_choices_are_named_and_the_closest_one(given: object, message: str) -> None:
    with pytest.raises(ConceptError, match=message):
        refuse_unknown("over", given, ("mean", "sum"), error=ConceptError)


def test_a_choice_passes() -> None:
    refuse_unknown("over", "sum", ("mean", "sum"), error=ConceptError)
