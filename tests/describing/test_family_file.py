"""The written file of a family says what the shipped one says."""

import math
from types import ModuleType
from typing import Any

import pytest
import torch

from diffusion_lens.architectures import todo as asking
from diffusion_lens.architectures.catalogue import find_blocks
from diffusion_lens.architectures.spec import DenoiserSpec
from diffusion_lens.describing import compare_with_evaluation, describe, family_file
from diffusion_lens.describing.family_file import FROM_A_PIPELINE
from diffusion_lens.errors import UnsupportedModelError
from diffusion_lens.testing import TINY_FAMILIES, tiny_denoiser
from tests.describing.test_shipped_descriptions import LEFT_OPEN, spec_of

FAST = ("sdxl", "flux", "qwen_image", "wan", "hunyuan_video")
LONGEST, HALF_OF_THEM = 130, 60
VARIED = ("sd3", "sd35_medium", "nucleus", "hunyuan_dit", "mochi")
"""Families with blocks of one class that differ: the file asks by what of the block."""

WITH_CONTROL = ("wan_vace",)
"""Families with blocks that attend as the others do, for a control: only a reader sees that."""

OTHER_PLACE = {"chroma": "time_text_embed", "hunyuan_video_15": "time_embed"}
"""Where the timestep's embedding is read at another module than that of the shipped description."""

pytestmark = pytest.mark.filterwarnings("ignore")


def source(family: str) -> str:
    return family_file(describe(*tiny_denoiser(family, dtype=torch.float16)))


def answered(text: str, shipped: DenoiserSpec, monkeypatch: pytest.MonkeyPatch) -> DenoiserSpec:
    """The description in a file, with what is shipped in the place of every question."""
    answers = {question: getattr(shipped, name) for name, question in FROM_A_PIPELINE.items()}
    answers["the token grid, from denoiser, arguments and level"] = shipped.grid
    answers["path of the module that returns the timestep's embedding, None"] = None
    monkeypatch.setattr(asking, "todo", lambda question: answers.get(question, ("channel",)))
    module = ModuleType("written")
    exec(compile(text, "written", "exec"), module.__dict__)
    (spec,) = (one for one in vars(module).values() if isinstance(one, DenoiserSpec))
    return spec


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=() if name in FAST else pytest.mark.slow)
        for name in TINY_FAMILIES
        if name not in (*VARIED, *WITH_CONTROL)
    ],
)
def test_what_is_written_is_what_is_shipped(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser, inputs = tiny_denoiser(family, dtype=torch.float16)
    text, shipped = source(family), spec_of(denoiser)
    spec = answered(text, shipped, monkeypatch)

    assert compare_with_evaluation(spec, denoiser, inputs)[0] == []
    paths = [[block.path for block in find_blocks(denoiser, one)] for one in (spec, shipped)]
    assert paths[0] == paths[1]
    assert (spec.latents, spec.text, spec.timestep) == (
        shipped.latents,
        shipped.text,
        shipped.timestep,
    )
    if family not in LEFT_OPEN:
        tokens = math.prod(spec.grid(denoiser, inputs, 0))
        assert tokens == math.prod(shipped.grid(denoiser, inputs, 0))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["auraflow", "hunyuan_video_15"])
def test_what_is_left_open_stops_the_import(family: str) -> None:
    doubts = describe(*tiny_denoiser(family, dtype=torch.float16)).doubts
    assert doubts
    assert all(f"{one}: then delete this line" in source(family) for one in doubts)


@pytest.mark.slow
def test_files_are_short() -> None:
    lengths = sorted(len(source(family).splitlines()) for family in TINY_FAMILIES)
    assert lengths[-1] <= LONGEST
    assert lengths[len(lengths) // 2] <= HALF_OF_THEM


def test_a_file_with_questions_cannot_be_imported() -> None:
    text = source("flux")
    assert text.count("todo(") == 6
    with pytest.raises(UnsupportedModelError, match="not finished: the token grid at the model's"):
        exec(compile(text, "written", "exec"), {})


@pytest.mark.slow
@pytest.mark.parametrize("family", VARIED)
def test_blocks_of_one_class_that_differ_are_asked_about(family: str) -> None:
    assert "blocks of this class differ, so say by what of the block" in source(family)


def test_answers_take_the_place_of_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {"guidance": "calls", "branches": ("cond", "uncond"), "text_tokens": 7}
    denoiser, inputs = tiny_denoiser("wan")
    text = family_file(describe(denoiser, inputs), told)
    assert text.count("todo(") == 3
    spec = answered(text, spec_of(denoiser), monkeypatch)
    assert {name: getattr(spec, name) for name in told} == told
