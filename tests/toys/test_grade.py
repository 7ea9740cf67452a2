import sys
from itertools import pairwise

import pytest

from diffusion_lens import toys
from diffusion_lens.toys import grade


@pytest.mark.slow
def test_the_command_prints_grades_and_times(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["grade", "--count", "5", "--model", "shapes-unet"])
    grade.main()
    printed = capsys.readouterr().out
    assert "shapes-unet: loads in" in printed and "an image takes" in printed
    assert "| single, all |" in printed


@pytest.mark.slow
def test_the_shipped_unet_draws_single_objects():
    report = grade.grade_model("shapes-unet", count=10)
    assert report.shares["single, all"]["colour"] >= 0.8
    assert report.shares["single, all"]["background"] >= 0.8


@pytest.mark.parametrize("count", ["0", "-3", "501"])
def test_a_count_that_there_is_not_is_refused(count, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["grade", "--count", count])
    with pytest.raises(SystemExit):
        grade.main()
    assert f"count={count}: there are 1 to 500 captions" in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 30, 300, 500])
def test_as_many_captions_as_asked_for_are_spread_over_all(count):
    captions = toys.test_captions()
    chosen = grade.evenly(captions, count)
    places = [captions.index(one) for one in chosen] + [len(captions)]
    gaps = [after - before for before, after in pairwise(places)]
    assert len(chosen) == count and places[0] == 0
    assert max(gaps) - min(gaps) <= 1 and min(gaps) >= 1


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", toys.names())
def test_the_card_tells_the_truth(name):
    from diffusion_lens.toys.loading import card

    facts, report = card(name), grade.grade_model(name)
    for group in ("single, all", "pair, all"):
        assert report.shares[group]["all"] == pytest.approx(facts["shares"][group]["all"], abs=0.02)
