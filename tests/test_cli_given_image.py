"""The size at which commands take a given image."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

from diffusion_lens import HookedDiffusion
from diffusion_lens.analyses import AttentionMaps, ConceptMaps, concept_attention
from diffusion_lens.cli.given_image import fitted, native_size, side_unit
from tests.pipelines import shared_pipe, short
from tests.test_cli import MMDIT, UNET, works

BELOW, UNEVEN, ABOVE = (24, 16), (30, 27), (64, 32)


def picture(size: tuple[int, int]) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.fixture(scope="module")
def models() -> dict[str, HookedDiffusion]:
    return {name: HookedDiffusion.toy(name) for name in ("shapes-unet", "shapes-mmdit")}


@pytest.mark.parametrize(("name", "unit"), [("shapes-unet", 8), ("shapes-mmdit", 2)])
def test_sides_are_rounded_down_to_what_patches_and_levels_tile(
    name: str, unit: int, models: dict[str, HookedDiffusion]
) -> None:
    model = models[name]
    assert side_unit(model) == unit
    assert native_size(model) == (32, 32)
    assert fitted(model, picture(BELOW)).size == BELOW
    with pytest.warns(UserWarning, match=rf"from 27 x 30 to .* multiples of {unit}"):
        assert fitted(model, picture(UNEVEN)).size == (30 // unit * unit, 27 // unit * unit)
    assert fitted(model, picture(ABOVE), size=(16, 32)).size == (32, 16)


def test_an_image_above_the_native_size_is_taken_with_a_warning_of_both_sizes(
    models: dict[str, HookedDiffusion],
) -> None:
    said = "has 32 x 64 pixels, toy:shapes-mmdit was made for 32 x 32"
    with pytest.warns(UserWarning, match=said):
        assert fitted(models["shapes-mmdit"], picture(ABOVE)).size == ABOVE


def test_an_image_smaller_than_a_patch_is_refused(
    models: dict[str, HookedDiffusion], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit):
        fitted(models["shapes-unet"], picture((40, 4)))
    assert "an image of 4 x 40 pixels is too small" in capsys.readouterr().err


def test_the_command_takes_an_image_at_the_size_that_python_takes_it(
    models: dict[str, HookedDiffusion], tmp_path: Path
) -> None:
    file = tmp_path / "given.png"
    picture(BELOW).save(file)
    image, out = ("--image", str(file)), tmp_path / "maps"
    concepts = ("--concepts", "circle", "--concepts", "background")
    works("concept-attention", MMDIT, "a red circle", *concepts, *image, "--out", str(out))
    python = concept_attention(
        models["shapes-mmdit"],
        "a red circle",
        concepts=["circle", "background"],
        image=picture(BELOW),
        max_sequence_length=32,
    )
    maps = ConceptMaps.load(out / "result")
    assert maps.maps.shape == python.maps.shape
    assert maps.made_by["size"] == python.made_by["size"] == [16, 24]


@pytest.mark.parametrize("model", [UNET, MMDIT])
def test_maps_of_a_given_image_have_its_shape(model: str, tmp_path: Path) -> None:
    file = tmp_path / "given.png"
    picture(BELOW).save(file)
    image, out = ("--image", str(file)), ("--out", str(tmp_path))
    works("attention-maps", model, "a red circle", *image, *out)
    maps = AttentionMaps.load(tmp_path / "result")
    assert maps.maps.shape[-2] / maps.maps.shape[-1] == 16 / 24
    assert maps.images[0].size == BELOW


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "cogvideox"])
def test_every_family_draws_at_the_unit_and_says_its_size(name: str) -> None:
    model = HookedDiffusion(shared_pipe(name))
    unit, native = side_unit(model), native_size(model)
    assert native is not None
    assert all(side >= unit for side in native)
    side = 2 * unit
    settings: Any = {key: value for key, value in short(name).items() if key != "latents"}
    out = model(**settings | {"height": side, "width": side})
    assert out.latents is not None
