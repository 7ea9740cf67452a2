"""What is known of the settings that are passed on to a pipeline, whichever pipeline it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from diffusion_lens.border.ranges import Number, Size


@dataclass(frozen=True)
class ByName:
    """Annotations of some of the keywords that `**settings` takes; the others may be anything."""

    hints: tuple[tuple[str, Any], ...]


COUNTS = (
    "num_inference_steps",
    "height",
    "width",
    "num_frames",
    "num_images_per_prompt",
    "num_videos_per_prompt",
    "max_sequence_length",
)
"""Settings that mean one thing in every pipeline of diffusers; each may be None."""

SCALES = ("guidance_scale", "guidance_scale_2", "true_cfg_scale", "guidance_rescale", "eta")
"""Likewise; pipelines draw a picture of nan with any of them, and say nothing."""

HINTS: dict[str, Any] = {
    **dict.fromkeys(COUNTS, Size | None),
    **dict.fromkeys(SCALES, Number | None),
}
"""The annotation of each."""

PipelineSetting = Annotated[Any, ByName(tuple(HINTS.items()))]
"""An argument of the pipeline's own call, which checks it, except for numbers that it does not."""
