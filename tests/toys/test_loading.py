import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from diffusion_lens import HookedDiffusion, toys
from diffusion_lens.toys.loading import UnknownToyError, card, checksums, folder
from diffusion_lens.toys.shapes.evaluation import GROUPS, Report

DOCS = Path(__file__).parents[2] / "docs" / "toys"
NAMES = toys.names()


def test_a_model_ships():
    assert "shapes-unet" in NAMES


def test_the_models_take_less_than_25_megabytes():
    where = [folder(name) for name in NAMES]
    total = sum(f.stat().st_size for one in where for f in one.rglob("*") if f.is_file())
    assert total < 25e6


@pytest.mark.parametrize("name", NAMES)
def test_weights_and_card_agree(name):
    assert card(name)["sha256"] == checksums(folder(name))
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    for file, digest in checksums(folder(name)).items():
        assert f"| `{file}` | `{digest}` |" in page


@pytest.mark.parametrize("name", NAMES)
def test_the_page_shows_the_grades_of_the_card(name):
    facts = card(name)
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    assert Report(facts["shares"], facts["counts"]).table() in page
    assert sum(facts["counts"][group] for group in GROUPS) >= 100


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_diffusers_alone_draws_the_same_image(name):
    alone = DiffusionPipeline.from_pretrained(toys.folder(name))
    ours = toys.load(name)
    assert type(ours) is type(alone)
    caption = "a red circle on a white background"
    theirs, known = (toys.generate(pipe, caption, steps=3) for pipe in (alone, ours))
    assert np.array_equal(theirs, known)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_all_parts_have_the_dtype_that_was_asked_for(name):
    for given, expected in ((None, torch.float32), (torch.bfloat16, torch.bfloat16)):
        pipe = toys.load(name, torch_dtype=given)
        modules = [m for m in pipe.components.values() if isinstance(m, torch.nn.Module)]
        assert {p.dtype for m in modules for p in m.parameters()} == {expected}


@pytest.mark.parametrize("name", NAMES)
def test_loading_is_quick(name):
    toys.load(name)
    began = time.perf_counter()
    toys.load(name)
    assert time.perf_counter() - began < 2


@pytest.mark.slow
def test_a_background_is_drawn_as_the_caption_says():
    images = toys.generate(
        toys.load("shapes-unet"), ["a red square on a black background"] * 4, steps=10
    )
    right = [toys.grade_image(image, "black background").background for image in images]
    assert right.count(True) >= 3


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(UnknownToyError, match=r"'shape-unet'; .* Closest: shapes-unet.*toys.names"):
        toys.load("shape-unet")


def test_a_name_may_carry_the_prefix_of_the_command_line():
    assert folder("toy:shapes-unet") == folder("shapes-unet")
    for make in (HookedDiffusion.toy, HookedDiffusion.from_pretrained):
        model = make("toy:shapes-unet", torch_dtype=torch.bfloat16)
        assert model.name == "toy:shapes-unet"
        assert next(model.denoiser.parameters()).dtype == torch.bfloat16


def test_importing_toys_imports_nothing_heavy():
    code = "import sys, diffusion_lens.toys; print({'torch', 'diffusers'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"


def test_every_public_name_exists():
    assert all(hasattr(toys, name) for name in toys.__all__)
    assert set(toys.__all__) <= set(dir(toys))
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        toys.lod  # noqa: B018
