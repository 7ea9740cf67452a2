"""`preset="daam"` gives the maps of the published tool (data in tests/golden)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lens import HookedDiffusion
from diffusion_lens.analyses import AttentionMaps, attention_maps
from tests.pipelines import golden, shared_pipe

CASES = [("sd", "daam0"), ("sd", "daam1"), ("sdxl", "daam0")]


def daam(family: str, name: str, **more: Any) -> AttentionMaps:
    given = golden(family)
    case = given.cases[name]
    settings = {key: case[key] for key in ("num_inference_steps", "guidance_scale")}
    row = case.get("latents_row", 0)
    settings["latents"] = given.inputs["hrv.latents" if row else "latents"][row : row + 1]
    model = HookedDiffusion(shared_pipe(family))
    chosen = {"preset": "daam", **more}
    return attention_maps(model, case["prompt"], output_type="latent", **settings, **chosen)


def block_of(family: str, path: str) -> int:
    """Number of the block that a module path of the published tool lies in."""
    model = HookedDiffusion(shared_pipe(family))
    (point,) = [
        one
        for one in model.points.values()
        if one.module == path and one.name.endswith("cross_attn.hook_pattern")
    ]
    assert point.block is not None
    return point.block


def agree(found: Tensor, family: str, name: str) -> None:
    """Within the tolerances of the README beside the golden folder."""
    expected = golden(family).expected[name]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), CASES)
def test_maps_and_words_agree(family: str, name: str) -> None:
    found = daam(family, name)
    agree(found.maps[0], family, f"{name}.heat_maps")
    agree(found.normalized()[0], family, f"{name}.heat_maps_normalized")
    for word, rows in golden(family).cases[name]["words"].items():
        agree(found.word(word, sample=0), family, f"{name}.word.{word}")
        assert found.prompts[0].find(word) == tuple(rows)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), CASES)
def test_single_layers_and_heads_agree(family: str, name: str) -> None:
    paths = golden(family).cases[name]["modules"]
    one = daam(family, name, blocks=[block_of(family, paths[1])], size=side(family, name))
    agree(one.maps[0], family, f"{name}.heat_maps_layer1")
    agree(daam(family, name, heads=[0]).maps[0], family, f"{name}.heat_maps_head0")


@pytest.mark.parametrize("name", ["daam0", "daam1"])
def test_layers_of_the_full_resolution_agree(name: str) -> None:
    finest = daam("sd", name, keep="block")
    model = HookedDiffusion(shared_pipe("sd"))
    blocks = [
        block
        for block in finest.blocks
        if model.points[f"blocks.{block}.cross_attn.hook_pattern"].level == 0
    ]
    assert 0 < len(blocks) < len(finest.blocks)
    agree(daam("sd", name, blocks=blocks).maps[0], "sd", f"{name}.heat_maps_fullres")


def test_the_published_modules_are_those_that_take_part() -> None:
    for family, name in CASES:
        paths = golden(family).cases[name]["modules"]
        assert set(daam(family, name).blocks) == {block_of(family, path) for path in paths}


def side(family: str, name: str) -> tuple[int, int]:
    found = golden(family).cases[name]["map_side"]
    return (found, found)
