"""The table of hook points: what it says of sizes is what a hook sees."""

from __future__ import annotations

import pytest
import torch

from diffusion_lens import HookedDiffusion
from diffusion_lens.testing import tiny_denoiser

NATIVE = ("sd1", "sd2", "sdxl", "sd3", "sd35_medium", "flux", "cogvideox")
"""Tiny models whose call is at the size that their config names; Flux has none."""

SPATIAL = ("channel", "height", "width")


@pytest.mark.parametrize("family", NATIVE)
def test_sizes_outside_the_blocks_are_those_that_a_hook_sees(family: str) -> None:
    denoiser, inputs = tiny_denoiser(family)
    model = HookedDiffusion(denoiser)
    rows = [row for row in model.hook_table() if set(SPATIAL) & set(row.axes)]
    assert {"hook_latents", "hook_noise_pred"} <= {row.name for row in rows}
    with torch.no_grad(), model.caching([row.name for row in rows]) as cache:
        denoiser(**inputs)
    for row in rows:
        seen = dict(zip(row.axes, cache[row.name].shape[-len(row.axes) :], strict=True))
        said = dict(zip(row.axes, row.shape, strict=True))
        for axis in SPATIAL:
            if said.get(axis) is not None:
                assert said[axis] == seen[axis], (row.name, axis)
        assert "height" not in said or None not in (said["height"], said["width"]), row.name


def test_what_a_module_does_not_say_is_left_open() -> None:
    model = HookedDiffusion(tiny_denoiser("sd1")[0])
    shapes = {row.name: row.shape for row in model.hook_table()}
    assert shapes["hook_latents"] == (1, 4, 8, 8)
    assert shapes["skips.0.hook_skip"] == (1, None, 8, 8)
    assert "1x?x8x8" in str(model.hook_table("skips.0.*"))


def test_one_hook_point_has_no_plural() -> None:
    model = HookedDiffusion(tiny_denoiser("sd1")[0])
    assert str(model.hook_table("mid.hook_h")).startswith("UNet2DConditionModel: 1 hook point\n")


def test_the_modules_are_walked_once_for_the_whole_table(monkeypatch: pytest.MonkeyPatch) -> None:
    model = HookedDiffusion(tiny_denoiser("sd1")[0])
    walks = []

    def dtype(_denoiser: object) -> torch.dtype:
        walks.append(1)
        return torch.float32

    monkeypatch.setattr(type(model.denoiser), "dtype", property(dtype))
    assert len(model.hook_table()) > 100
    assert len(walks) == 1  # diffusers walks every module for it
