"""Where tensors can be: not among the package's own names, because it imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch

from diffusion_lens.border.ranges import Rule


@dataclass(frozen=True)
class Available(Rule):
    """A device that torch knows and that this machine has."""

    def holds(self, value: str | int | torch.device) -> bool:
        """Whether a tensor can be made there."""
        try:
            torch.empty(0, device=value)
        except (AssertionError, NotImplementedError, RuntimeError):
            return False
        return True

    def __str__(self) -> str:
        """As a message says it."""
        return "of this machine"


Device = Annotated[str | int | torch.device, Available()]
"""A device of this machine, such as `"cpu"` or `"cuda:0"`."""
