"""The demo: every part, its numbers, what it leaves in its folder."""

import pytest

from diffusion_lens import HookedDiffusion
from diffusion_lens.analyses import AttentionMaps, ConceptMaps, HeadRelevance
from diffusion_lens.analyses.concept_attention.toy_benchmark import saliency_method
from diffusion_lens.app.demo import DEMO_PARTS, Demo, run_demo
from diffusion_lens.app.demo.setting import LOCALISING, PROMPT, Size
from diffusion_lens.toys.benchmark.segmentation import score_segmentation, segmentation_tasks

SMALL = Size(steps=4, scenes=2, captions=12, weakened=2, seeds=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Demo, list[str]]:
    told: list[str] = []
    folder = tmp_path_factory.mktemp("demo")
    return run_demo(folder, size=SMALL, tell=told.append, show_progress=False), told


@pytest.mark.slow
def test_every_part_is_announced_and_shown(made: tuple[Demo, list[str]]) -> None:
    demo, told = made
    assert told == [f"[{n}/{len(DEMO_PARTS)}] {name}" for n, name in enumerate(DEMO_PARTS, 1)]
    page = demo.page.read_text(encoding="utf-8")
    assert page.count("<section>") == len(DEMO_PARTS) + 1
    assert f"“{PROMPT}”" in page
    assert page.count('class="plotly-graph-div"') == 6


def test_three_numbers_matter(made: tuple[Demo, list[str]]) -> None:
    precision, area, effect = made[0].numbers
    assert 0.3 < float(precision.value) <= 1  # a random map reaches less than 0.1
    assert -1 <= float(area.value) <= 1
    assert effect.value.endswith(" %")
    page = made[0].page.read_text(encoding="utf-8")
    assert all(number.meaning[:20] in page for number in made[0].numbers)


def test_images_and_results_lie_beside_the_report(made: tuple[Demo, list[str]]) -> None:
    folder = made[0].page.parent
    assert (folder / "shapes-unet.png").exists()
    assert (folder / "shapes-mmdit.png").exists()
    for kind, name in (
        (AttentionMaps, "attention_maps"),
        (ConceptMaps, "concept_attention"),
        (HeadRelevance, "head_relevance"),
    ):
        kind.load(folder / "results" / name)


@pytest.mark.slow
def test_concepts_are_shown_on_a_block_that_localises() -> None:
    model = HookedDiffusion.toy("shapes-mmdit")
    scenes = segmentation_tasks(6, noise_level=0.5, seed=5)
    shown = score_segmentation(saliency_method(model, blocks=LOCALISING), scenes)["object"]
    named = score_segmentation(saliency_method(model), scenes)["object"]
    assert shown.miou > named.miou + 0.1
