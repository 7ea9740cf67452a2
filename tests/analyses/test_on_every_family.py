"""Analyses on the tiny pipeline of every family, against values read and combined by hand."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from diffusion_lens import HookedDiffusion, Site
from diffusion_lens.analyses import (
    activation_patching,
    attention_maps,
    attribution_patching,
    head_patterns,
)
from diffusion_lens.authoring import as_tensor
from tests.tiny_pipelines import PIPELINES, tiny_pipeline
from tests.tiny_videos import TINY_VIDEOS, tiny_video

PROMPT, OTHER = "a red cat on the glass table", "a red dog on the glass table"
FAST = ("flux2", "qwen_image")
FAMILIES = [
    pytest.param(name, marks=[] if name in FAST else pytest.mark.slow)
    for name in (*PIPELINES, *(name for name in TINY_VIDEOS if tiny_video(name).words))
]

pytestmark = pytest.mark.filterwarnings("ignore")


@functools.cache
def shared(name: str) -> HookedDiffusion:
    return HookedDiffusion(tiny_pipeline(name) if name in PIPELINES else tiny_video(name).pipe)


def settings(name: str) -> dict[str, Any]:
    """Of a run of two steps without guidance."""
    if name in PIPELINES:
        one = PIPELINES[name]
        height, width = one.pixels
        size = {"height": height, "width": width}
        return {
            "num_inference_steps": 2,
            "output_type": "pt",
            **size,
            **one.settings,
            **one.unguided,
        }
    video = tiny_video(name)
    found = {**video.settings, **video.unguided, "output_type": "pt"}
    return {key: value for key, value in found.items() if key not in ("prompt", "generator")}


def patterns(name: str) -> tuple[list[torch.Tensor], list[int]]:
    """Every pattern of image queries and text keys, and where the word lies in the text."""
    model, kept = shared(name), []
    sites = [site.with_(branch="cond") for site in model.text_pattern_sites()]
    hooks = [(site, lambda value, _: kept.append(value.double().clone())) for site in sites]
    model.run_with_hooks(PROMPT, fwd_hooks=hooks, seed=0, **settings(name))
    return kept, list(model.prompt_tokens(PROMPT).find("cat"))


@pytest.mark.parametrize("name", FAMILIES)
def test_maps_of_a_word_are_the_mean_of_its_patterns(name: str) -> None:
    model = shared(name)
    found = attention_maps(model, PROMPT, words=["cat"], seed=0, **settings(name))
    kept, word = patterns(name)
    each = torch.stack([value[..., word].mean(-1).mean(1) for value in kept]).mean(0)
    grid = found.maps.shape[found.axes.index("token") + 1 :]
    by_hand = each[:, : grid.numel()].unflatten(-1, grid)
    torch.testing.assert_close(
        found.word("cat").squeeze().double(), by_hand.squeeze(), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_masses_of_a_word_are_those_of_its_patterns(name: str) -> None:
    found = head_patterns(shared(name), PROMPT, words=["cat"], every=1, seed=0, **settings(name))
    kept, word = patterns(name)

    assert found.mass is not None
    by_hand = torch.stack([value[..., word].mean(-2) for value in kept])
    assert found.mass.sum() == pytest.approx(float(by_hand.sum()), rel=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_last_residual_decides_the_prediction(name: str) -> None:
    model = shared(name)
    last = f"blocks.{model.n_blocks - 1}.img.hook_resid_post"
    sweep = {"axes": ("block",), "seeds": 1, "show_progress": False, **settings(name)}
    found = activation_patching(model, PROMPT, OTHER, sites=[last], **sweep)
    effects = as_tensor(found.effects)
    torch.testing.assert_close(effects, torch.ones_like(effects), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", FAMILIES)
def test_attributions_of_the_last_residual_follow_finite_differences(name: str) -> None:
    model = shared(name)
    last = Site(f"blocks.{model.n_blocks - 1}.img.hook_resid_post")
    sweep = {"axes": ("block",), "seeds": 1, "show_progress": False, **settings(name)}
    found = attribution_patching(model, PROMPT, OTHER, sites=[last], **sweep)
    assert bool(torch.isfinite(as_tensor(found.effects)).all())
    assert float(as_tensor(found.effects).abs().sum()) > 0
