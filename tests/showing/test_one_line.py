"""Every result says in one line what it is, and those with images show them."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from diffusion_lens.analyses import registry
from diffusion_lens.analyses.attend_and_excite import ExcitedImages
from diffusion_lens.analyses.attention_maps.result import AttentionMaps
from diffusion_lens.analyses.concept_attention import ConceptMaps
from diffusion_lens.analyses.diagnose_word import WordDiagnosis
from diffusion_lens.analyses.edited_images import EditedImages
from diffusion_lens.analyses.head_patterns.result import HeadPatterns
from diffusion_lens.analyses.head_relevance import HeadRelevance
from diffusion_lens.analyses.inversion import Inversion
from diffusion_lens.analyses.ordered_weakening import WeakeningCurves
from diffusion_lens.analyses.patching import AblationResult, PatchingResult
from diffusion_lens.analyses.saving import Saved
from diffusion_lens.analyses.stable_flow import VitalBlocks
from diffusion_lens.showing.one_line import one_line, prompt_of

MADE_BY = {"model": "toy:shapes-unet", "run": "Run('a cat\\'s\\nglass table', seed=0)"}
IMAGE = Image.new("RGB", (8, 8), (9, 9, 9))
FLAT = torch.rand(1, 2, 64, 64)
ROW = torch.rand(1, 64)


def maps() -> Any:
    return AttentionMaps(
        maps=FLAT,
        axes=("batch", "token", "height", "width"),
        positions=(1, 2),
        foreign={},
        prompts=(),
        steps=(0,),
        heads=((0, 0),),
        blocks=(0,),
        images=(IMAGE,),
        made_by=MADE_BY,
    )


def concepts() -> Any:
    axes = ("batch", "concept", "height", "width")
    return ConceptMaps(FLAT, axes, ("sky", "sea"), (0,), (0,), images=(IMAGE,), made_by=MADE_BY)


def patched() -> Any:
    grid = torch.rand(64)
    return PatchingResult(
        effects=grid,
        low=grid,
        high=grid,
        samples=grid[:, None],
        axes=("block",),
        labels={"block": tuple(range(64))},
        seeds=(0,),
        source=grid,
        base=grid,
        left_out={},
        made_by=MADE_BY,
    )


def ablated() -> AblationResult:
    grid = torch.rand(64)
    return AblationResult(
        effects=grid,
        low=grid,
        high=grid,
        samples=grid[:, None],
        axes=("block",),
        labels={"block": tuple(range(64))},
        seeds=(0,),
        base=grid,
        left_out={},
        value="zero",
        made_by=MADE_BY,
    )


def diagnosis() -> Any:
    return WordDiagnosis(
        word="apple",
        concepts=("Fruit", "Brand"),
        maps=FLAT,
        every=FLAT[:, 0],
        scores={"share": torch.tensor([[1.6431, 0.5]])},
        heads={"Fruit": ((0, 0),), "Brand": ((0, 1),)},
        images=(IMAGE,),
        made_by=MADE_BY,
    )


RESULTS: dict[type, Callable[[], Any]] = {
    AttentionMaps: maps,
    ConceptMaps: concepts,
    PatchingResult: patched,
    AblationResult: ablated,
    WordDiagnosis: diagnosis,
    HeadRelevance: lambda: HeadRelevance(
        vectors=ROW,
        concepts=("Colour",),
        words={"Colour": ("red",)},
        heads=tuple((block, 0, "", "") for block in range(64)),
        prompts=96,
        made_by={"merged": [MADE_BY, MADE_BY]},
    ),
    HeadPatterns: lambda: HeadPatterns(
        mass=None,
        values={"entropy": torch.rand(1, 4, 64)},
        heads=tuple((block, 0) for block in range(64)),
        steps=(0, 1, 2, 3),
        positions=(),
        prompts=(),
        made_by=MADE_BY,
    ),
    WeakeningCurves: lambda: WeakeningCurves(
        "Colour", (0, 64), {"most": torch.rand(1, 1, 2, 3)}, ("score",), ("a",), (0,), None, MADE_BY
    ),
    EditedImages: lambda: EditedImages(
        "a cat", ("a dog",), [IMAGE, IMAGE], FLAT, "masactrl", made_by=MADE_BY
    ),
    ExcitedImages: lambda: ExcitedImages(
        "a cat", {"cat": (1,)}, [IMAGE], FLAT, ROW[0], tuple(range(64)), made_by=MADE_BY
    ),
    VitalBlocks: lambda: VitalBlocks(ROW.mT, "pixel_distance", ("a cat",), MADE_BY),
    Inversion: lambda: Inversion(FLAT, "a cat", IMAGE, IMAGE, FLAT, 0.1, 0.2, 0.3, made_by=MADE_BY),
}
WITH_IMAGES = {
    AttentionMaps: 1 + 2,
    ConceptMaps: 1 + 2,
    WordDiagnosis: 1 + 3,
    EditedImages: 2,
    ExcitedImages: 1,
    Inversion: 2,
}


def test_every_result_of_the_package_is_here() -> None:
    registry.analyses()
    ours = {one for one in _last(Saved) if one.__module__.startswith("diffusion_lens.")}
    assert ours == set(RESULTS)


def _last(kind: type) -> Iterator[type]:
    """The classes at the ends of a family."""
    heirs = kind.__subclasses__()
    yield from (last for heir in heirs for last in _last(heir)) if heirs else [kind]


@pytest.mark.parametrize("result", RESULTS.values(), ids=[one.__name__ for one in RESULTS])
def test_a_result_says_in_one_line_what_it_is_and_how_to_look(result: Callable[[], Any]) -> None:
    found = result()
    said = repr(found)
    assert said.startswith(f"{type(found).__name__}(toy:shapes-unet: ")
    assert "\n" not in said and "tensor(" not in said and len(said) < 260
    assert said.endswith(".plot())")
    ways = said.rpartition("; ")[2].removesuffix(")").split(", ")
    assert all(hasattr(found, way.strip(".").partition("(")[0]) for way in ways)


@pytest.mark.parametrize("kind", WITH_IMAGES, ids=[one.__name__ for one in WITH_IMAGES])
def test_a_result_with_images_shows_them(kind: type) -> None:
    found = RESULTS[kind]()
    markup = found._repr_html_()
    assert markup.count("<img ") == WITH_IMAGES[kind]
    assert type(found).__name__ in markup


def test_maps_are_shown_on_one_scale_with_their_names_and_a_video_without_them() -> None:
    found = concepts()
    flat = torch.zeros(1, 2, 4, 4)
    flat[0, 1] = 1.0
    shown = replace(found, maps=flat)._repr_html_()
    assert all(f"{name}</figcaption>" in shown for name in ("image", "sky", "sea"))
    sources = re.findall(r'src="([^"]+)"', shown)
    assert len(set(sources)) == 3
    video = replace(found, images=([IMAGE, IMAGE, IMAGE],))._repr_html_()
    assert video.count("<img ") == 3 and "sky</figcaption>" not in video
    assert replace(found, images=None)._repr_html_() is None
    assert replace(found, images=("lost",))._repr_html_() is None


def test_a_word_that_is_there_twice_is_shown_twice() -> None:
    assert maps().labels == ("[1]", "[2]")
    twice = replace(maps(), foreign={"cat": (2, 3)}, maps=torch.rand(1, 4, 8, 8))
    assert twice._repr_html_().count("cat</figcaption>") == 2


def test_weakening_curves_show_the_images_that_were_kept() -> None:
    curves = RESULTS[WeakeningCurves]()
    assert curves._repr_html_() is None
    kept = replace(curves, images={"most": [[[IMAGE] * 3, [IMAGE] * 3]]})
    shown = kept._repr_html_()
    assert shown.count("<img ") == 2 and "64 weakened, most first</figcaption>" in shown


def test_images_that_were_not_kept_leave_the_line() -> None:
    images: Any = {"images": None}
    edited = EditedImages("a cat", ("a dog",), latents=FLAT, method="masactrl", **images)
    assert edited._repr_html_() is None
    assert repr(edited).startswith("EditedImages(masactrl 'a cat' -> 'a dog', ")


def test_the_prompt_of_a_run_is_read_from_its_text() -> None:
    assert prompt_of({"run": "Run('a cat', seed=0)"}) == "'a cat'"
    assert prompt_of({"run": 'Run("a cat\'s, (b)", seed=0)'}) == '"a cat\'s, (b)"'
    assert prompt_of({"run": "Run(('a cat', 'a dog'), seed=0)"}) == "'a cat', …"
    assert prompt_of({"run": "Run(None, seed=0)"}) == prompt_of({}) == ""
    long = prompt_of({"run": f"Run('{'cat ' * 90}', seed=0)"})
    assert len(long) == 60 and long.endswith("…'")


def test_a_line_without_a_model_begins_with_what_it_is() -> None:
    assert one_line(1, "a\nb", "", look=(".plot()",)) == "int(a b; .plot())"


def test_a_model_in_a_folder_is_called_by_the_end_of_its_path() -> None:
    said = one_line(1, "a", made_by={"model": "/data/models/sd/unet"}, look=(".plot()",))
    assert said == "int(sd/unet: a; .plot())"
    said = one_line(1, "a", made_by={"model": "stabilityai/sdxl-turbo"}, look=(".plot()",))
    assert said == "int(stabilityai/sdxl-turbo: a; .plot())"
