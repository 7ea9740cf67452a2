"""What the parts of the demo share: models, how much is drawn, what a part gives."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from diffusion_lens import HookedDiffusion, toys
from diffusion_lens.app.report_parts import Number, Part

UNET, MMDIT = "shapes-unet", "shapes-mmdit"
PROMPT = "a red circle above a blue square"
LOCALISING = (4,)
"""The block of the MM-DiT whose concept maps cut objects best: its second single block.

Chosen by IoU on scenes that neither the demo nor the README shows; the numbers are in
docs/methods/concept_attention.md.
"""


@dataclass(frozen=True)
class Size:
    """How much the demo draws.

    Attributes:
        steps: Denoising steps.
        scenes: Scenes with known masks.
        captions: Captions from which head relevance is counted.
        weakened: Captions drawn at each point of a weakening curve.
        seeds: Samples of the patching sweep.
    """

    steps: int = 20
    scenes: int = 12
    captions: int = 48
    weakened: int = 16
    seeds: int = 8


@dataclass(frozen=True)
class Found:
    """What a part of the demo found.

    Attributes:
        title: Of its section.
        parts: The section.
        number: Its number, where it has one of those that matter.
        images: Pictures to keep as files, by name.
        results: Results to keep as folders, by name.
    """

    title: str
    parts: Sequence[Part]
    number: Number | None = None
    images: dict[str, Any] | None = None
    results: dict[str, Any] | None = None


@dataclass
class Setting:
    """The models and how they are called; each is loaded when a part first asks for it.

    Attributes:
        size: How much is drawn.
        show_progress: Show progress bars.
    """

    size: Size
    show_progress: bool = True

    @cached_property
    def unet(self) -> HookedDiffusion:
        """The toy with cross-attention."""
        return HookedDiffusion.toy(UNET)

    @cached_property
    def mmdit(self) -> HookedDiffusion:
        """The toy with joint attention."""
        return HookedDiffusion.toy(MMDIT)

    @contextlib.contextmanager
    def bar(self, model: HookedDiffusion) -> Iterator[None]:
        """Show the pipeline's own progress bar inside."""
        pipe: Any = model.pipe
        if self.show_progress:
            pipe.set_progress_bar_config(disable=False, leave=False)
        try:
            yield
        finally:
            pipe.set_progress_bar_config(disable=True)

    def call(self, model: HookedDiffusion, *, share: float = 1.0) -> dict[str, Any]:
        """Arguments that suit a toy; `share` of the steps where many images are drawn."""
        pipe: Any = model.pipe
        return toys.call_defaults(pipe, steps=max(1, round(self.size.steps * share)))
