"""What a patch is scored by. Every metric takes an `Outcome` and gives one number for each row.

Metrics are ordinary functions; write your own. Those with a mask or other arguments are used with
`functools.partial`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from diffusion_lens.analyses.patching.outcome import Outcome
from diffusion_lens.border import public
from diffusion_lens.errors import PatchingError
from diffusion_lens.metrics.recovery import distance, projection, recovery

Images = UInt8[np.ndarray, "batch height width rgb"]


@public
def latent_recovery(outcome: Outcome, *, mask: Tensor | None = None) -> Float[Tensor, " batch"]:
    """How much of the squared distance from base to source is gone.

    Of predictions where steps are teacher-forced, of final latents in whole runs. With ordinary
    classifier-free guidance it is the same for conditional and guided predictions.

    Args:
        outcome: What a patch came to.
        mask: Places that count, as `diffusion_lens.metrics.recovery.weights_of` takes them.
    """
    source, base = _beside(outcome)
    return recovery(outcome.value, source.value, base.value, mask=mask)


@public
def latent_projection(outcome: Outcome, *, mask: Tensor | None = None) -> Float[Tensor, " batch"]:
    """How far along the line from base to source a prediction (or final latents) lies.

    Linear, so that effects of parts that do not interact add up; the metric to compare attribution
    with.

    Args:
        outcome: What a patch came to.
        mask: Places that count, likewise.
    """
    source, base = _beside(outcome)
    return projection(outcome.value, source.value, base.value, mask=mask)


@public
def x0_distance(outcome: Outcome, *, mask: Tensor | None = None) -> Float[Tensor, " batch"]:
    """Minus the distance of the clean latents from the source's: 0 is best.

    Args:
        outcome: What a patch came to.
        mask: Places that count, likewise.
    """
    source, _ = _beside(outcome)
    return -distance(outcome.clean_latents, source.clean_latents, mask=mask)


@public
def latent_distance(outcome: Outcome, *, mask: Tensor | None = None) -> Float[Tensor, " batch"]:
    """Distance of a prediction (or final latents) from the base's: 0 is the base itself.

    The root of the mean squared difference, in units of the latents. For ablations, whose base is
    the intact run.

    Args:
        outcome: What a patch came to.
        mask: Places that count, likewise.
    """
    _, base = _beside(outcome)
    return distance(outcome.value, base.value, mask=mask)


@dataclass(frozen=True)
class TextDifference:
    """Score of the images with one text minus that with another; see `text_difference`."""

    score: Callable[[Images, Sequence[str]], Tensor]
    towards: str
    away: str

    def __call__(self, outcome: Outcome) -> Float[Tensor, " batch"]:
        """The difference for each row."""
        images = outcome.images
        frames = images if images.ndim == 4 else images.reshape(-1, *images.shape[2:])
        towards, away = (
            torch.as_tensor(self.score(frames, [text] * len(frames)))
            for text in (self.towards, self.away)
        )
        return (towards - away).reshape(len(images), -1).mean(1)


@public
def text_difference(
    score: Callable[[Images, Sequence[str]], Tensor], *, towards: str, away: str
) -> TextDifference:
    """A metric: how much better the images fit one text than another, as CLIP scores are used.

    Of a video, the mean over its frames.

    Args:
        score: Of images (uint8) and as many texts; one number each, more is better.
        towards: What the source should show.
        away: What the base should show.
    """
    return TextDifference(score, towards, away)


@dataclass(frozen=True)
class Graded:
    """Whether an image is right in one part of a caption; see `graded`."""

    caption: str
    part: str

    def __call__(self, outcome: Outcome) -> Float[Tensor, " batch"]:
        """1 where it is, otherwise 0."""
        from diffusion_lens.toys import grade_image

        verdicts = [grade_image(image, self.caption).parts for image in outcome.images]
        return torch.tensor([float(parts[self.part] is True) for parts in verdicts])


@public
def graded(caption: str, *, part: str = "all") -> Graded:
    """A metric for the shipped toy models: is the image right, decided by a program?

    Pairs in which source and base get the same grade have no effect to speak of and are dropped.

    Args:
        caption: What the source should show.
        part: Which part of the caption, such as `"colour"`, `"shape"` or `"all"`.

    Raises:
        PatchingError: If the caption says nothing of that part.
    """
    from diffusion_lens.toys.shapes.captions import read_caption

    said = read_caption(caption)
    attributes = [getattr(thing, part, None) for thing in said.things]
    if part not in ("all", "count") and not any((*attributes, getattr(said, part, None))):
        raise PatchingError(f"{caption!r} says nothing of {part!r}; grade a part that it says")
    return Graded(caption, part)


def _beside(outcome: Outcome) -> tuple[Outcome, Outcome]:
    """Source and base of an outcome, which they themselves lack."""
    return outcome.source or outcome, outcome.base or outcome
