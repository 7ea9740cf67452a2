"""`check_pipeline`: right descriptions pass, and each wrong field is caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from diffusion_lens.architectures import registry
from diffusion_lens.architectures.spec import DenoiserSpec
from diffusion_lens.errors import ContractError
from diffusion_lens.testing import check_pipeline
from tests.tiny_pipelines import PIPELINES, tiny_pipeline
from tests.tiny_videos.families import TINY_VIDEOS, tiny_video

FAST = ("qwen_image",)
SLOW = ("flux2_klein", "z_image", "krea2", "pixart", "lumina2", "wan", "ltx_video", "hunyuan_video")
SLOW += ("ltx2",)
RUN_ONLY = ("num_inference_steps", "output_type", "prompt", "generator")

pytestmark = pytest.mark.filterwarnings("ignore")


def marked(names: list[str]) -> list[Any]:
    rare = pytest.mark.exhaustive
    marks: dict[str, Any] = {**dict.fromkeys(SLOW, pytest.mark.slow), **dict.fromkeys(FAST, ())}
    return [pytest.param(name, marks=marks.get(name, rare)) for name in names]


def pipeline_and_settings(name: str) -> tuple[Any, dict[str, Any]]:
    if name in PIPELINES:
        one = PIPELINES[name]
        return tiny_pipeline(name), {**one.settings, **(one.guided or one.unguided)}
    video = tiny_video(name)
    kept = {key: value for key, value in video.settings.items() if key not in RUN_ONLY}
    return video.pipe, kept


# Cosmos 2.5 gives its denoiser other timesteps than Cosmos 2, which is described, gives to the same
# class; in runs both are those of the scheduler.
@pytest.mark.parametrize(
    "name", marked([one for one in (*PIPELINES, *TINY_VIDEOS) if one != "cosmos25"])
)
def test_shipped_descriptions_are_what_pipelines_do(name: str) -> None:
    pipe, settings = pipeline_and_settings(name)
    left_open = {line.partition(":")[0] for line in check_pipeline(pipe, **settings)}
    assert left_open <= {
        "guidance",
        "branches",
        "timestep_scale",
        "grid, in tokens",
        "grid, order",
        "place of 'cat' in the text",
        "place of 'cat' in a longer text",
        "text_tokens",
        "place of 'cat' in a negative prompt",
    }
    if name in (*FAST, "krea2", "lumina2", "wan", "hunyuan_video", "ltx2"):
        assert left_open <= {"grid, order", "text_tokens"}
    if name in ("wan", "pixart", "sd3"):
        assert "grid, order" not in left_open


def shifted(spec: DenoiserSpec) -> DenoiserSpec:
    parts = tuple(replace(part, before=lambda _pipe, _count: 1) for part in spec.text_parts)
    return replace(spec, text_parts=parts)


def replaced_part(spec: DenoiserSpec, **more: Any) -> DenoiserSpec:
    return replace(spec, text_parts=(replace(spec.text_parts[0], **more),))


LONG = 30
"""Between the tokens of the usual prompt and those of the longer one, its template included."""

WRONG: dict[str, tuple[Callable[[DenoiserSpec], DenoiserSpec], str]] = {
    "branches": (lambda s: replace(s, branches=s.branches[::-1]), "branches: described as"),
    "guidance": (lambda s: replace(s, guidance="batched"), "guidance: described as 'batched'"),
    "timesteps": (lambda s: replace(s, timestep_scale=1.0), "timestep_scale: described as 1.0"),
    "timesteps turned round": (
        lambda s: replace(s, timestep_scale=-1000.0),
        "timestep_scale: described as -1000.0, a run of QwenImagePipeline has 1000.0",
    ),
    "grid": (
        lambda s: replace(s, grid=lambda d, a, n: (2, *s.grid(d, a, n))),
        "grid, in tokens: described as",
    ),
    "words behind others": (
        lambda s: replaced_part(s, before=lambda _pipe, count: int(count > LONG)),
        "place of 'cat' in a longer text: described as",
    ),
    "words of negative prompts": (
        lambda s: replaced_part(s, negative=replace(s.text_parts[0], before=lambda *_: 1)),
        "place of 'cat' in a negative prompt: described as",
    ),
    "words": (shifted, "place of 'cat' in the text: described as"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_field_is_caught(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, settings = pipeline_and_settings("qwen_image")
    change, said = WRONG[wrong]
    kind = type(pipe.transformer).__name__
    monkeypatch.setitem(registry._REGISTERED, kind, change(registry._REGISTERED[kind]))
    with pytest.raises(ContractError, match=said):
        check_pipeline(pipe, **settings)


def columns_first(grid: tuple[int, ...]) -> tuple[int, ...]:
    frames, height, width = grid
    assert height != width
    return (frames, width, height)


TURNED: dict[str, tuple[str, Callable[[DenoiserSpec], DenoiserSpec], str]] = {
    "grid by columns": (
        "wan",
        lambda s: replace(s, grid=lambda d, a, n: columns_first(s.grid(d, a, n))),
        "grid, order: described as",
    ),
    "text that is filled up": (
        "wan",
        lambda s: replace(s, text_tokens=500),
        "text_tokens: described as 500, a run of WanPipeline has 512",
    ),
    "text that is not": (
        "flux2_klein",
        lambda s: replace(s, text_tokens=10),
        "text_tokens: described as 10",
    ),
}


@pytest.mark.parametrize("wrong", TURNED)
def test_a_wrong_order_or_length_is_caught(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, change, said = TURNED[wrong]
    pipe, settings = pipeline_and_settings(name)
    kind = type(pipe.transformer).__name__
    monkeypatch.setitem(registry._REGISTERED, kind, change(registry._REGISTERED[kind]))
    settings = {key: value for key, value in settings.items() if key != "max_sequence_length"}
    with pytest.raises(ContractError, match=said):
        check_pipeline(pipe, **settings)
