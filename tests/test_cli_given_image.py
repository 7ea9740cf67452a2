"""The size at which commands take a given image."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_lens import HookedDiffusion
from diffusion_lens.analyses import AttentionMaps, ConceptMaps, concept_attention
from tests.test_cli import MMDIT, UNET, works

BELOW = (24, 16)


def picture(size: tuple[int, int]) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.fixture(scope="module")
def models() -> dict[str, HookedDiffusion]:
    return {name: HookedDiffusion.toy(name) for name in ("shapes-unet", "shapes-mmdit")}


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
