"""What a tiny video pipeline is, and the settings that all of them share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import nn

from diffusion_lens.testing.tiny import draw_weights

PROMPT = "a red cat on the glass table"
NEGATIVE = "blurry video"
SIZE: dict[str, Any] = {"height": 32, "width": 48, "num_frames": 9}
SHORT: dict[str, Any] = {
    "prompt": PROMPT,
    "negative_prompt": NEGATIVE,
    "num_inference_steps": 3,
    "max_sequence_length": 24,
    "output_type": "latent",
}
OFF: dict[str, Any] = {"guidance_scale": 1.0}


@dataclass(frozen=True)
class TinyVideo:
    """A pipeline and what is known of a run of it without the library.

    Attributes:
        pipe: The pipeline.
        settings: Arguments of a short run at a size that is not square.
        unguided: What to change for one without guidance.
        grid: Tokens (frames, height, width) of it.
        frames: Frames of the video.
        words: Whether the places of words can be told.
        size: Height and width in pixels.
        before: Frames of latents in front of the video's own.
        fewest: Steps of the shortest run.
        as_negative: Settings with which a prompt becomes what a negative prompt does.
    """

    pipe: Any
    settings: dict[str, Any]
    unguided: dict[str, Any]
    grid: tuple[int, int, int]
    frames: int = 9
    words: bool = True
    size: tuple[int, int] = field(default=(32, 48))
    before: int = 0
    fewest: int = 1
    as_negative: dict[str, Any] = field(default_factory=dict)


def drawn(denoiser: nn.Module, seed: int = 0) -> nn.Module:
    """A denoiser with open gates and sharp attention."""
    draw_weights(denoiser, torch.Generator().manual_seed(seed))
    return denoiser.eval()


def picture() -> Image.Image:
    """A random image of that size."""
    pixels = torch.randint(0, 255, (32, 48, 3), generator=torch.Generator().manual_seed(0))
    return Image.fromarray(pixels.to(torch.uint8).numpy())
