"""When and how far Attend-and-Excite moves the latents."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from torch import Tensor

from diffusion_lens.border import Between, Count, Fraction, Index, Number, public
from diffusion_lens.interventions.latent_update import Evaluate
from diffusion_lens.interventions.pattern_gradient import LossAt

THRESHOLDS = {0: 0.05, 10: 0.5, 20: 0.8}
"""At these steps the least attended word must reach so much attention, as published."""


NotNegative = Annotated[float, Between(0, open_high=True)]
ScaleRange = tuple[NotNegative, NotNegative]
"""Squares of factors, of which roots are taken."""


@public
@dataclass(frozen=True)
class Excite:
    """One step down the gradient before each of the first steps; at some, as many as are needed.

    Attributes:
        step_size: Times `sqrt(s)`, where `s` goes from the first to the second of `scale_range`
            along the run.
        scale_range: The two.
        thresholds: By step, the attention up to which the latents are moved again and again.
        max_iter_to_alter: The step from which on latents are left alone.
        max_rounds: Most moves at a step with a threshold.
        losses: (step, loss) before every move.
    """

    step_size: Number = 20.0
    scale_range: ScaleRange = (1.0, 0.5)
    thresholds: Mapping[Index, Fraction] = field(default_factory=lambda: dict(THRESHOLDS))
    max_iter_to_alter: Index = 25
    max_rounds: Count = 20
    losses: list[tuple[int, float]] = field(default_factory=list, compare=False)

    def __call__(self, latents: Tensor, step: int, evaluate: Evaluate) -> Tensor:
        """The latents with which the step is made.

        As in the released code, a refinement looks at the loss from before its last move, so that
        one more move follows after the threshold is reached.
        """
        if step not in self.thresholds and step >= self.max_iter_to_alter:
            return latents
        found = evaluate(latents)
        if step in self.thresholds:
            enough = 1 - self.thresholds[step]
            rounds = 0
            while found.loss > enough or rounds:
                latents = self._moved(latents, step, found)
                rounds += 1
                reached = found.loss <= enough
                found = evaluate(latents)
                if reached or rounds >= self.max_rounds:
                    break
        return latents if step >= self.max_iter_to_alter else self._moved(latents, step, found)

    def _moved(self, latents: Tensor, step: int, found: LossAt) -> Tensor:
        if found.loss == 0:
            return latents
        self.losses.append((step, found.loss))
        return latents - self._size(step, found.steps) * found.gradient

    def _size(self, step: int, steps: int) -> float:
        first, last = self.scale_range
        share = step / (steps - 1) if steps > 1 else 0.0
        return self.step_size * math.sqrt(first + (last - first) * share)
