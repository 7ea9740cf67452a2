"""What a metric is given: the outcome of a patched run, with those of source and base beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from diffusion_lens.errors import PatchingError, ResultError

Metric = Callable[["Outcome"], Tensor]
"""Gives one number for each row of an outcome."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What some runs came to; one row for each run.

    Attributes:
        value: Teacher-forced: the raw conditional prediction. Else: the final latents.
        samples: For each row, which sample it is.
        steps: For each row its step, where it is a single evaluation; empty for whole runs.
        source: The source's outcome for the same samples and steps; None in the source's own.
        base: The base's, likewise.
    """

    value: Float[Tensor, "batch ..."]
    samples: tuple[int, ...]
    steps: tuple[int, ...] = ()
    source: Outcome | None = None
    base: Outcome | None = None
    _clean: Callable[[Tensor], Tensor] = field(default=lambda value: value, repr=False)
    _decode: Callable[[Tensor], np.ndarray] | None = field(default=None, repr=False)

    @cached_property
    def clean_latents(self) -> Float[Tensor, "batch ..."]:
        """The clean latents: of a single evaluation, those that its prediction implies."""
        return self._clean(self.value)

    @cached_property
    def images(self) -> UInt8[np.ndarray, "batch *frame height width rgb"]:
        """The decoded clean latents, of videos with an axis of frames; decoded when this is read.

        A metric of images sees single frames of a video where it flattens the first two axes.
        """
        if self._decode is None:
            raise ResultError("these outcomes cannot be decoded: the model has no pipeline")
        with torch.no_grad():
            return (self._decode(self.clean_latents.detach()) * 255).round().astype(np.uint8)

    def beside(self, source: Outcome, base: Outcome) -> Outcome:
        """The same outcome with source and base beside it."""
        return replace(self, source=source, base=base)


def scored(metric: Metric, outcome: Outcome) -> Float[Tensor, " batch"]:
    """One number for each row, as float32 with its gradient.

    Raises:
        PatchingError: If the metric gives anything else.
    """
    found = torch.as_tensor(metric(outcome))
    if found.shape != (len(outcome.samples),):
        raise PatchingError(
            f"the metric {metric!r} gave shape {tuple(found.shape)} for {len(outcome.samples)} "
            "rows; it must give one number for each row of `outcome.value`"
        )
    return found if found.dtype == torch.float64 else found.float()
