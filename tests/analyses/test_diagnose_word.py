"""Diagnosis of a word: its maps, its scores, what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from diffusion_lens import HookedDiffusion
from diffusion_lens.analyses import WordDiagnosis, attention_maps, diagnose_word
from diffusion_lens.analyses.diagnose_word import agreement, focus
from diffusion_lens.errors import ConceptError, ResultError, SiteError, WordError
from tests.pipelines import shared_pipe, short

PROMPT = "a red cat on the glass table"
HEADS = {"Animals": [(0, 0), (1, 1)], "Material": [(2, 1)]}


def diagnosis(concepts: Any = HEADS, word: str = "glass table", **more: Any) -> WordDiagnosis:
    settings = {key: value for key, value in short("sd").items() if key != "prompt"}
    model = HookedDiffusion(shared_pipe("sd"))
    return diagnose_word(model, PROMPT, word, concepts, **{**settings, **more})


def test_scores_by_hand() -> None:
    even, single = torch.ones(4, 4), torch.zeros(4, 4)
    single[1, 2] = 3.0
    assert focus(even).item() == pytest.approx(0, abs=1e-6)
    assert focus(single).item() == pytest.approx(1)
    values = torch.arange(16.0).reshape(4, 4)
    assert agreement(values, 2 * values + 1).item() == pytest.approx(1)
    assert agreement(values, -values).item() == pytest.approx(-1)
    assert agreement(values, even).item() == pytest.approx(0)


def test_maps_are_those_of_the_heads_of_each_concept() -> None:
    found = diagnosis()
    settings = {key: value for key, value in short("sd").items() if key != "prompt"}
    model = HookedDiffusion(shared_pipe("sd"))
    for concept, heads in HEADS.items():
        alone = attention_maps(
            model, PROMPT, heads=heads, clamp="each", size=(16, 16), **settings
        ).word("glass table")
        torch.testing.assert_close(found.of(concept), alone)
    share = found.maps.mean((-2, -1)) / found.every.mean((-2, -1))[:, None]
    torch.testing.assert_close(found.scores["share"], share)
    assert found.largest() == (max(HEADS, key=lambda one: float(found.of(one).mean())),)


def test_heads_come_from_what_ranks_them() -> None:
    asked = []

    def top(concept: str, k: float) -> list[tuple[int, int]]:
        asked.append((concept, k))
        return HEADS[concept]

    found = diagnosis(list(HEADS), relevance=SimpleNamespace(top=top), k=0.1)
    assert asked == [("Animals", 0.1), ("Material", 0.1)]
    torch.testing.assert_close(found.maps, diagnosis().maps)


def test_diagnoses_survive_saving_and_are_drawn(tmp_path: Path) -> None:
    found = diagnosis(output_type="pil")
    again = WordDiagnosis.load(found.save(tmp_path / "diagnosis"))
    assert torch.equal(again.maps, found.maps) and again.heads == found.heads
    assert again.plot().data
    with pytest.raises(ResultError, match="sample 9 was asked for, there are "):
        again.plot(sample=9)
    with pytest.raises(ResultError, match="no image to draw over"):
        diagnosis().plot()


@pytest.mark.parametrize(
    ("error", "message", "concepts", "word"),
    [
        (ConceptError, "two candidates or more", ["Animals"], "cat"),
        (ConceptError, "are not known: give relevance=", ["Animals", "Material"], "cat"),
        (ConceptError, "heads of 'B' are", {"A": [(0, 0)], "B": []}, "cat"),
        (ConceptError, "without weights", {"A": [(0, 0)], "B": {(0, 1): 2.0}}, "cat"),
        (SiteError, r"'B' has the head \(99, 0\)", {"A": [(0, 0)], "B": [(99, 0)]}, "cat"),
        (WordError, "'dog' is not in the prompt", HEADS, "dog"),
    ],
    ids=["one", "names", "no heads", "weights", "head", "word"],
)
def test_bad_input_is_refused(
    error: type[Exception], message: str, concepts: Any, word: str
) -> None:
    with pytest.raises(error, match=message):
        diagnosis(concepts, word)


def test_results_refuse_what_they_lack() -> None:
    found = diagnosis()
    assert "'glass table' by heads of each concept, share {'Animals': " in repr(
        found
    ) and "\n" not in repr(found)
    with pytest.raises(ConceptError, match=r"'Animal' is none of .* Closest: 'Animals'"):
        found.of("Animal")
    with pytest.raises(ResultError, match="by='x' is none of"):
        found.largest("x")
