"""Analyses on the tiny pipeline of every family, against values read and combined by hand."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import pytest
import torch

from diffusion_lens import HookedDiffusion, Run, Site
from diffusion_lens.analyses import (
    activation_patching,
    attention_maps,
    attribution_patching,
    head_patterns,
)
from diffusion_lens.errors import EngineError, PatchingError
from tests.tiny_pipelines import PIPELINES, tiny_pipeline
from tests.tiny_pipelines.families import HEIGHT, WIDTH
from tests.tiny_videos.families import TINY_VIDEOS, tiny_video

PROMPT, OTHER = "a red cat on the glass table", "a red dog on the glass table"
FAST = ("qwen_image",)
SLOW = ("flux2", "z_image", "krea2", "chroma", "pixart", "wan", "ltx_video", "hunyuan_video")
GIVEN_AN_IMAGE = ("wan_i2v", "wan_ti2v_image", "wan_animate", "chrono_edit", "consisid")


def _marked(names: Iterable[str]) -> list[Any]:
    rare = pytest.mark.exhaustive
    marks: dict[str, Any] = {**dict.fromkeys(SLOW, pytest.mark.slow), **dict.fromkeys(FAST, ())}
    return [pytest.param(name, marks=marks.get(name, rare)) for name in names]


VIDEOS = [name for name in TINY_VIDEOS if name not in (*GIVEN_AN_IMAGE, "hunyuan_video_15")]
FAMILIES = _marked((*PIPELINES, *VIDEOS))
POOLED = {"hidream": "_get_clip_prompt_embeds", "kandinsky5": "_encode_prompt_clip"}
"""What makes the pooled text of families whose last layer reads it."""

REFUSED = {
    "ernie_image": "whose rows cannot be told apart, so that no evaluation can start behind it",
    "ideogram4": "predictions of Ideogram4Transformer2DModel have 84 tokens, its latents 24",
}
"""Why patching at the last residual is refused."""

IMAGES = _marked(name for name in PIPELINES if name not in ("z_image", *REFUSED))

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
    run = Run(PROMPT, **settings(name))
    return kept, list(model.prompt_tokens(PROMPT, run=run).find("cat"))


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
    # Only tokens of the image itself ask: those that Z-Image is filled up with do not.
    tokens = HEIGHT * WIDTH if name in PIPELINES else None
    by_hand = torch.stack([value[:, :, :tokens, word].mean(-2) for value in kept])
    assert found.mass.sum() == pytest.approx(float(by_hand.sum()), rel=1e-4)


@pytest.mark.parametrize("name", IMAGES)
def test_the_last_residual_decides_the_prediction(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shared(name)
    if name in POOLED:  # modulates what comes behind the blocks, too
        method, original = POOLED[name], getattr(model.pipe, POOLED[name])
        monkeypatch.setattr(model.pipe, method, lambda *a, **k: 0 * original(*a, **k))
    last = f"blocks.{model.n_blocks - 1}.img.hook_resid_post"
    sweep = {"axes": ("block",), "seeds": 1, "show_progress": False, **settings(name)}
    found = activation_patching(model, PROMPT, OTHER, sites=[last], **sweep)
    effects = torch.as_tensor(found.effects)
    torch.testing.assert_close(effects, torch.ones_like(effects), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", IMAGES)
def test_attributions_of_the_last_residual_are_finite_and_not_zero(name: str) -> None:
    model = shared(name)
    last = Site(f"blocks.{model.n_blocks - 1}.img.hook_resid_post")
    sweep = {"axes": ("block",), "seeds": 1, "show_progress": False, **settings(name)}
    found = attribution_patching(model, PROMPT, OTHER, sites=[last], **sweep)
    assert bool(torch.isfinite(torch.as_tensor(found.effects)).all())
    assert float(torch.as_tensor(found.effects).abs().sum()) > 0


@pytest.mark.parametrize("name", _marked(REFUSED))
def test_patching_is_refused_where_rows_or_tokens_cannot_be_told_apart(name: str) -> None:
    model = shared(name)
    last = f"blocks.{model.n_blocks - 1}.img.hook_resid_post"
    sweep = {"axes": ("block",), "seeds": 1, "show_progress": False, **settings(name)}
    with pytest.raises((PatchingError, EngineError), match=REFUSED[name]):
        activation_patching(model, PROMPT, OTHER, sites=[last], **sweep)


@pytest.mark.slow
def test_patching_refuses_samples_that_come_one_by_one() -> None:
    model = shared("z_image")
    sweep = {"seeds": 1, "show_progress": False, **settings("z_image")}
    with pytest.raises(PatchingError, match=r"takes its samples one by one, .* `run_with_hooks`"):
        activation_patching(model, PROMPT, OTHER, sites=["blocks.0.img.hook_resid_post"], **sweep)
