"""ConceptAttention in the toy models' benchmark, and its ablations."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from diffusion_lens import HookedDiffusion
from diffusion_lens.analyses.concept_attention import ablations
from diffusion_lens.analyses.concept_attention.toy_benchmark import compare, saliency_method
from diffusion_lens.toys.benchmark.segmentation import segmentation_tasks
from diffusion_lens.toys.tokenizers import MAX_LENGTH


@pytest.fixture(scope="module")
def model() -> HookedDiffusion:
    return HookedDiffusion.toy("shapes-mmdit")


def test_each_query_gets_the_map_of_its_words(model: HookedDiffusion) -> None:
    (task,) = segmentation_tasks(1, noise_level=0.3)
    maps = saliency_method(model)(task)
    assert maps.shape == (len(task.queries), 16, 16)
    kinds = [query.kind for query in task.queries]
    objects = [found for found, kind in zip(maps, kinds, strict=True) if kind == "object"]
    total = sum(objects) + maps[kinds.index("background")]
    assert total == pytest.approx(1, abs=1e-5), "a softmax over the objects and the background"


def test_the_model_reads_as_many_tokens_as_it_was_trained_with(model: HookedDiffusion) -> None:
    (task,) = segmentation_tasks(1, noise_level=0.3)
    read: list[torch.Size] = []
    with model.hooks([("hook_text_emb", lambda value, _hook: read.append(value.shape))]):
        saliency_method(model)(task)
    assert {shape[1] for shape in read} == {MAX_LENGTH}


@pytest.mark.slow
def test_objects_are_found_better_than_by_guessing(model: HookedDiffusion) -> None:
    scores = compare(model, noise_level=0.2, count=4)
    found = {name: scores[name]["object"].average_precision for name in scores}
    assert found["ConceptAttention"] > found["centred disc"] > 0
    assert found["exact mask on 16 x 16 cells"] > 0.9


@pytest.mark.slow
def test_every_ablation_is_written(
    model: HookedDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablations, "LEVELS", (0.2,))
    attended = {name: ablations.ATTENDED[name] for name in ("nothing", "both")}
    monkeypatch.setattr(ablations, "ATTENDED", attended)
    monkeypatch.setattr(ablations, "SPACES", ("z",))
    found = ablations.ablate(model, count=1)
    assert list(found.tables) == ["layer", "space", "attends to", "noise level"]
    assert list(found.tables["layer"])[-3:] == [
        "block 3 (single)",
        "block 4 (single)",
        "all double blocks",
    ]
    assert found.tables["layer"]["all double blocks"] == found.tables["attends to"]["both"]
    found.write(tmp_path)
    saved = json.loads((tmp_path / "ablations.json").read_text())
    with (tmp_path / "ablations.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(saved["scores"]) and saved["scenes"] == 1
    assert (tmp_path / "ablations.md").read_text().count("| object |") == 4
    assert list(found.figures()) == list(found.tables)
