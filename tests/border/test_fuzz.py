"""Arguments of a wrong type or value are refused in words."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.border.cases import all_cases
from tests.border.fuzzing import Outcome, Trial, outcome, trials
from tests.border.world import World

MOST_OBSCURE = 0.03


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("border"))


def refuse_obscure(found: list[Outcome]) -> None:
    """Fail where more than a few ended in errors that are not the library's own."""
    kinds = Counter(one.kind for one in found)
    obscure = [one for one in found if one.kind == "obscure"]
    listed = "\n".join(
        f"{one.case}({one.argument}={one.value}): {one.error}" for one in obscure[:40]
    )
    assert len(obscure) <= MOST_OBSCURE * len(found), f"{dict(kinds)}\n{listed}"


def one_of_each(every: Sequence[Trial]) -> list[Trial]:
    """One wrong value for every argument of every function."""
    by_argument: dict[tuple[str, str], list[Trial]] = {}
    for one in every:
        by_argument.setdefault((one[0].name, one[1]), []).append(one)
    draw = random.Random(0)
    return [draw.choice(some) for some in by_argument.values()]


def test_a_wrong_value_for_every_argument(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    every = trials(all_cases(world))
    assert len(every) > 14_000
    refuse_obscure([outcome(*one) for one in one_of_each(every)])


@pytest.mark.exhaustive
def test_every_wrong_argument(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cases = all_cases(world)
    for case in cases:
        if case.name != "load_published":  # there are no files
            case.call(**case.arguments)
    refuse_obscure([outcome(*one) for one in trials(cases)])
