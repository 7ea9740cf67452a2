"""The experiment of `make toys-hrv` on a few images, and the results that are committed."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from diffusion_lens.toys.benchmark.polysemy import misreading
from diffusion_lens.toys.benchmark.weakening import attribute_score, captions_naming
from diffusion_lens.toys.shapes.captions import read_caption

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CONCEPTS = ["Colour", "Shape", "Texture", "Size", "Background", "Relation"]


@pytest.fixture(scope="module")
def experiment() -> ModuleType:
    spec = importlib.util.spec_from_file_location("toys_hrv", BENCHMARKS / "toys_hrv.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def check_sums(folder: Path) -> None:
    for line in (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        digest, name = line.split()
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


@pytest.mark.slow
def test_a_few_images_go_through_the_whole_experiment(
    experiment: ModuleType, tmp_path: Path
) -> None:
    facts = experiment.experiment(experiment.FAST, tmp_path)
    check_sums(tmp_path)
    written = json.loads((tmp_path / "toys_hrv.json").read_text(encoding="utf-8"))
    assert list(written["vectors"]) == list(facts["vectors"]) == CONCEPTS
    for one in written["vectors"].values():
        assert sum(one["vector"]) == pytest.approx(len(written["heads"]), rel=1e-3)
    curves = written["weakening"]["-2.0"]["Shape"]["curves"]
    assert set(curves) == {"most", "least", "random"}
    assert curves["most"][0] == curves["least"][0]  # no head weakened
    assert curves["most"][-1] == curves["least"][-1]  # every head weakened
    assert written["polysemy"]["colour"]["adjusted"]["count"] == experiment.FAST.seeds


@pytest.mark.skipif(
    not (BENCHMARKS / "results" / "toys_hrv").exists(), reason="no results are committed"
)
def test_committed_results_are_whole() -> None:
    folder = BENCHMARKS / "results" / "toys_hrv"
    check_sums(folder)
    facts = json.loads((folder / "toys_hrv.json").read_text(encoding="utf-8"))
    assert list(facts["vectors"]) == CONCEPTS
    assert facts["plan"]["vectors"] >= 100
    assert all(one["plain"]["count"] >= 50 for one in facts["polysemy"].values())


def test_misreading_by_hand() -> None:
    found = misreading(["fruit", "colour", None, "colour"], "fruit")
    assert (found["rate"], found["missing"], found["count"]) == (0.5, 0.25, 4)
    assert 0.14 < found["low"] < 0.16  # Wilson's interval of 2 in 4: 0.150 to 0.850
    assert 0.84 < found["high"] < 0.86
    with pytest.raises(ValueError, match="a sense is one of"):
        misreading(["fruit"], "animal")
    with pytest.raises(ValueError, match="0 images"):
        misreading([], "fruit")


def test_captions_name_what_was_asked() -> None:
    for caption in captions_naming("size", "texture"):
        first = read_caption(caption).things[0]
        assert first.size and first.texture
    assert all(read_caption(caption).relation for caption in captions_naming("relation"))


def test_scores_are_grades() -> None:
    blank = np.zeros((32, 32, 3), np.uint8)
    score = attribute_score("background")
    found = score([blank, blank], ["a red circle on a black background", "a red circle"])
    assert found[0] == 0.0 or found[0] == 1.0
    assert np.isnan(found[1])
    with pytest.raises(ValueError, match="a grade has no part 'color'"):
        attribute_score("color")([blank], ["a red circle"])
