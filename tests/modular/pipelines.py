"""Tiny modular pipelines, of the very components of the tiny classic ones."""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch

from tests.pipelines import fresh_pipe
from tests.tiny_pipelines import tiny_pipeline
from tests.tiny_videos.families import TINY_VIDEOS, _without_ftfy, fresh_video

PROMPT = "a red cat on the glass table"
NEGATIVE = "blurry picture"


@dataclass(frozen=True)
class Family:
    """How a modular pipeline is made and run, and the same run of the classic pipeline.

    Attributes:
        blocks: Class of its blocks.
        classic: What makes the classic pipeline.
        settings: Settings of a short run.
        scale: The classic pipeline's argument for the guider's scale; None where none guides.
        more: Further settings of the classic pipeline.
        negative: Whether it takes a negative prompt.
        less: How much less the classic pipeline's scale is than the guider's.
    """

    blocks: str
    classic: Callable[[], Any]
    settings: Mapping[str, Any]
    scale: str | None = "guidance_scale"
    more: Mapping[str, Any] = field(default_factory=dict)
    negative: bool = True
    less: float = 0.0


FAMILIES = {
    "sdxl": Family(
        "StableDiffusionXLAutoBlocks",
        lambda: fresh_pipe("sdxl"),
        {"height": 64, "width": 64},
    ),
    "sd3": Family(
        "StableDiffusion3AutoBlocks",
        lambda: fresh_pipe("sd3"),
        {"height": 32, "width": 32, "max_sequence_length": 32},
    ),
    "flux": Family(
        "FluxAutoBlocks",
        lambda: fresh_pipe("flux"),
        {"height": 32, "width": 32, "max_sequence_length": 32},
        scale=None,
        negative=False,
    ),
    "flux2": Family(
        "Flux2AutoBlocks",
        lambda: tiny_pipeline("flux2"),
        {
            "height": 16,
            "width": 24,
            "max_sequence_length": 200,
            "text_encoder_out_layers": (1, 2, 3),
        },
        scale=None,
        negative=False,
    ),
    "flux2_klein_base": Family(
        "Flux2KleinBaseAutoBlocks",
        lambda: tiny_pipeline("flux2_klein"),
        {
            "height": 16,
            "width": 24,
            "max_sequence_length": 60,
            "text_encoder_out_layers": (1, 2, 3),
        },
        negative=False,
    ),
    "qwen_image": Family(
        "QwenImageAutoBlocks",
        lambda: tiny_pipeline("qwen_image"),
        {"height": 16, "width": 24, "max_sequence_length": 60},
        scale="true_cfg_scale",
    ),
    "z_image": Family(
        "ZImageAutoBlocks",
        lambda: tiny_pipeline("z_image"),
        {"height": 32, "width": 48, "max_sequence_length": 60},
        less=1.0,
    ),
    "ltx": Family(
        "LTXAutoBlocks",
        lambda: fresh_video(TINY_VIDEOS["ltx_video"]).pipe,
        {"height": 64, "width": 96, "num_frames": 17, "max_sequence_length": 24},
    ),
    "wan": Family(
        "WanBlocks",
        lambda: fresh_video(TINY_VIDEOS["wan"]).pipe,
        {"height": 32, "width": 48, "num_frames": 9, "max_sequence_length": 24},
    ),
}
"""Every family whose prompts are described."""


def put_together(classic: Any, blocks: Any, **components: Any) -> Any:
    """A modular pipeline of a classic one's components.

    Args:
        classic: The classic pipeline.
        blocks: Class of the blocks.
        **components: Further ones, or others in their place; None leaves one out.
    """
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        blocks = getattr(diffusers, blocks)() if isinstance(blocks, str) else blocks
        pipe = blocks.init_pipeline()
        wanted = {**classic.components, **components}
        held = {one: part for one, part in wanted.items() if one in pipe.component_names}
        pipe.update_components(**{one: part for one, part in held.items() if part is not None})
    quiet(pipe)
    for block in all_blocks(pipe):
        _without_ftfy(type(block))
    return pipe


def quiet(pipe: Any) -> None:
    """Show no progress, in loops that lie within other blocks either."""
    for block in all_blocks(pipe):
        if hasattr(block, "set_progress_bar_config"):
            block.set_progress_bar_config(disable=True)


def all_blocks(pipe: Any) -> list[Any]:
    """Every block of a pipeline."""
    found = [pipe._blocks]
    for block in found:
        found += block.sub_blocks.values()
    return found


def made(name: str, **components: Any) -> tuple[Any, Any]:
    """A classic pipeline and a modular one, which share their components."""
    family = FAMILIES[name]
    classic = family.classic()
    pipe = put_together(classic, family.blocks, **components)
    for block in all_blocks(pipe):
        if type(block).__name__ == "QwenImageTextEncoderStep":  # tiny tokens of its template
            block.prompt_template_encode_start_idx = classic.prompt_template_encode_start_idx
    if name == "flux2":  # whose message has a space where the classic one has a line's end
        classic.system_message = pipe._blocks.sub_blocks["text_encoder"].DEFAULT_SYSTEM_MESSAGE
    return classic, pipe


@functools.cache
def shared(name: str) -> tuple[Any, Any]:
    """The same for tests that leave both as they were."""
    return made(name)


def guided(pipe: Any, scale: float = 4.0, **more: Any) -> None:
    """Give a modular pipeline classifier-free guidance of a scale."""
    with contextlib.redirect_stderr(io.StringIO()):
        guider = diffusers.ClassifierFreeGuidance(guidance_scale=scale, **more)
    pipe.update_components(guider=guider)


def settings(name: str, *, steps: int = 2, **more: Any) -> dict[str, Any]:
    """Settings of a short run of a modular pipeline."""
    family = FAMILIES[name]
    given = {"num_inference_steps": steps, **family.settings}
    given |= {"negative_prompt": NEGATIVE} if family.negative else {}
    return {**given, **more}


def of_classic(name: str, given: Mapping[str, Any], *, scale: float = 4.0) -> dict[str, Any]:
    """The settings of the same run of the classic pipeline."""
    family = FAMILIES[name]
    scaled = {family.scale: scale - family.less} if family.scale else {}
    return {**given, **scaled, **family.more}


def generator(seed: int = 0) -> torch.Generator:
    """One that draws the noise of a run."""
    return torch.Generator().manual_seed(seed)
