"""The streams that a value inside a block is computed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diffusion_lens.describing.origins import made_from, sources
from diffusion_lens.describing.residuals import Residual
from diffusion_lens.describing.rows import Labels, Rows
from diffusion_lens.describing.tracing import Call, Place, Value


@dataclass(frozen=True)
class Streams:
    """The streams of one block.

    Attributes:
        block: The block's call.
        arguments: For each argument whose tokens belong to streams, which they are.
        residuals: How each comes through the block.
    """

    block: Call
    arguments: Mapping[Place, Rows]
    residuals: Sequence[Residual]

    @classmethod
    def of(cls, block: Call, found: Sequence[Residual], labels: Labels) -> Streams:
        """Those of a block, from the labels of all blocks."""
        arguments = {place: rows for (call, place), rows in labels.items() if call is block}
        return cls(block, arguments, found)

    def behind(self, value: Value) -> set[str]:
        """The streams that a value is computed from, their last states before it counting alone."""
        states: dict[Value, set[str]] = {
            self.block.takes[at]: set(rows.order) for at, rows in self.arguments.items()
        }
        for one in self.residuals:
            for state in one.states if one.argument in self.arguments else ():
                states.setdefault(state, set()).update(self.arguments[one.argument].order)
        behind = sources(value, self.block, ends=states, through=made_from)
        return {name for one in behind for name in states.get(one, ())}

    def own(self, value: Value) -> bool:
        """Whether a value is computed from a residual of the block, token by token."""
        if value.tensor.ndim < 3:
            return False
        streams = {self.block.takes[one.argument] for one in self.residuals}
        return any(one in streams for one in sources(value, self.block))
