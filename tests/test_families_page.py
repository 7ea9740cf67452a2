"""The table of docs/families.md says what the descriptions say."""

import re

import diffusers
import pytest

from diffusion_lens import HookedDiffusion
from diffusion_lens.architectures.registry import architectures
from diffusion_lens.architectures.undescribed import UNDESCRIBED
from diffusion_lens.testing import tiny_denoiser
from mkdocs_hooks import families
from tests.modular.pipelines import FAMILIES, made

PARTS = re.compile(
    "Adapter|Autoencoder|Bank|Conditioner|ControlNet|Controlnet|Decoder$|Duration|Encoder|Head"
    "|Projection|Token(izer|Detok)|VAE|VQ|Vae|Vocoder|ModelMixin"
)
"""Models of diffusers that are no denoisers, by what their names have in them."""


def test_every_denoiser_of_diffusers_is_described_or_the_page_says_why_not() -> None:
    models = {
        name
        for name in dir(diffusers)
        if isinstance(found := getattr(diffusers, name), type)
        and issubclass(found, diffusers.ModelMixin)
    }
    described = set(architectures())
    assert not described & set(UNDESCRIBED)
    told = described | set(UNDESCRIBED)
    assert {name for name in models - told if not PARTS.search(name)} == set()


@pytest.mark.slow
def test_the_table_is_that_of_the_descriptions() -> None:
    page = families.PAGE.read_text(encoding="utf-8")
    assert families.written(page) == page, "run `python mkdocs_hooks/families.py`"


def test_every_shipped_family_has_a_tiny_model() -> None:
    shown = {
        row.split(" | ")[1]
        for row in families.PAGE.read_text(encoding="utf-8").splitlines()
        if row.startswith("| ") and "`" in row
    }
    assert {f"`{spec.denoiser}`" for spec in families.SHIPPED} <= shown


def test_the_modular_pipelines_are_those_that_tests_run() -> None:
    told = [blocks for several in families.MODULAR.values() for blocks in several]
    assert sorted(told) == sorted(family.blocks for family in FAMILIES.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_modular_pipeline_stands_beside_its_own_denoiser(name: str) -> None:
    blocks = FAMILIES[name].blocks
    tiny = next(one for one, several in families.MODULAR.items() if blocks in several)
    model = HookedDiffusion(made(name)[1])
    assert type(model.denoiser) is type(tiny_denoiser(tiny)[0])
