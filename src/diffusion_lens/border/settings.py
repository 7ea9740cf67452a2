"""What is known of the settings that are passed on to a pipeline, whichever pipeline it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from diffusion_lens.border.ranges import Size


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

PipelineSetting = Annotated[Any, ByName(tuple((name, Size | None) for name in COUNTS))]
"""An argument of the pipeline's own call, which checks it, except for sizes that it does not."""
