"""The size at which models take a given image."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffusion_lens import HookedDiffusion
from diffusion_lens.errors import RunError
from diffusion_lens.hooked_diffusion.given_image import fitted, native_size, side_unit
from tests.pipelines import shared_pipe, short

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
    assert fitted(model, picture(ABOVE), height=16, width=32).size == (32, 16)


def test_an_image_above_the_native_size_is_taken_with_a_warning_of_both_sizes(
    models: dict[str, HookedDiffusion],
) -> None:
    said = "has 32 x 64 pixels, toy:shapes-mmdit was made for 32 x 32"
    with pytest.warns(UserWarning, match=said):
        assert fitted(models["shapes-mmdit"], picture(ABOVE)).size == ABOVE


def test_an_image_smaller_than_a_patch_is_refused(
    models: dict[str, HookedDiffusion],
) -> None:
    with pytest.raises(RunError, match="an image of 4 x 40 pixels is too small"):
        fitted(models["shapes-unet"], picture((40, 4)))


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
