"""Numbers with a range, declared once and used as annotations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

LARGEST_SIZE = 2**16
LARGEST_COUNT = 2**31 - 1


class Rule:
    """What `Annotated` adds to a type: a test of values of that type, and words for it."""

    def holds(self, value: Any) -> bool:
        """Whether a value of the type is meant."""
        raise NotImplementedError


@dataclass(frozen=True)
class Between(Rule):
    """The range that a number lies in; nan lies in none.

    Attributes:
        low: The smallest number.
        high: The largest one.
        open_low: Whether `low` itself is left out.
        open_high: Whether `high` itself is left out.
    """

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number lies in it."""
        above = self.low < value if self.open_low else self.low <= value
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        """As a message says it: `from 1 to 65536`."""
        low = None if self.low == -math.inf else f"{self.low:{_form(self.low)}}"
        high = None if self.high == math.inf else f"{self.high:{_form(self.high)}}"
        parts = []
        if low is not None:
            parts.append(f"above {low}" if self.open_low else f"from {low}")
        if high is not None:
            parts.append(f"below {high}" if self.open_high else f"to {high}")
        return " ".join(parts) if parts else "that is finite"


def _form(number: float) -> str:
    return "," if isinstance(number, int) else "g"


Count = Annotated[int, Between(1, LARGEST_COUNT)]
"""How many: at least one."""

Amount = Annotated[int, Between(high=LARGEST_COUNT)]
"""How many, where the function itself says what the least is."""

Index = Annotated[int, Between(0, LARGEST_COUNT)]
"""Which one, counted from 0."""

Size = Annotated[int, Between(1, LARGEST_SIZE)]
"""A length that memory is taken for at once: pixels, tokens, steps.

The bound is a hundred times what any pipeline uses (512 tokens, some thousand pixels, a thousand
steps); tokenizers and allocators end the process, or the machine, at numbers far above it.
"""

Seed = Annotated[int, Between(-(2**63), 2**64 - 1)]
"""What torch's generators take."""

Number = Annotated[float, Between(open_low=True, open_high=True)]
"""Any finite number."""

Positive = Annotated[float, Between(0, open_low=True, open_high=True)]
"""A finite number above 0."""

Fraction = Annotated[float, Between(0, 1)]
"""A share, both ends included."""

Level = Annotated[float, Between(0, 1, open_low=True, open_high=True)]
"""A level of confidence, both ends left out."""
