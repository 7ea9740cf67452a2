"""How a stream comes from an argument of a block to its output: what is added to it, and when."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import nn

from diffusion_lens.describing.origins import (
    ADDED,
    CUT,
    HANDED_ON,
    JOINED,
    LIMITS,
    argument_of,
    made_in,
    rows_of,
)
from diffusion_lens.describing.tracing import Call, Place, Trace, Value


@dataclass(frozen=True)
class Added:
    """A term of a residual's sum.

    Attributes:
        factors: What is multiplied to make it; one where nothing is.
    """

    factors: tuple[Value, ...]


@dataclass(frozen=True)
class Residual:
    """A stream on its way through a block.

    Attributes:
        argument: The argument of the block that brings it in.
        output: Its place in the output.
        way: The values that it is, and what is added between them, in order.
        entrance: The module whose output it begins with, in place of the argument itself.
        clamped: Whether it is kept within bounds.
    """

    argument: Place
    output: Place
    way: tuple[Value | Added, ...]
    entrance: Call | None = None
    clamped: bool = False

    @property
    def states(self) -> tuple[Value, ...]:
        """The values that it is."""
        return tuple(one for one in self.way if isinstance(one, Value))


def residuals(trace: Trace, block: Call) -> list[Residual]:
    """The streams of a block, one for each tensor of its output that comes from an argument."""
    found = []
    for place, output in block.gives.items():
        way = _Backwards(block).walk(output, 0)
        if way is not None and way.start is not None:
            found.append(way.residual(way.start, place))
            continue
        entered = _entered(trace, block, place, output)
        if entered is not None:
            found.append(entered)
    return found


def _entered(trace: Trace, block: Call, place: Place, output: Value) -> Residual | None:
    """A stream that passes a layer of the block before its first sublayer."""
    for call in trace.calls:
        if call.inside is not block or not isinstance(call.module, nn.Linear):
            continue
        given = call.gives[()]
        way = _Backwards(block, given).walk(output, 0)
        if way is None or given.shape != output.shape:
            continue
        for argument, value in block.takes.items():
            if value.shape == output.shape:
                return way.residual(argument, place, entrance=call)
    return None


@dataclass
class _Way:
    start: Place | None
    steps: list[Value | Added] = field(default_factory=list)
    joined: bool = False
    clamped: bool = False

    def residual(self, argument: Place, output: Place, *, entrance: Call | None = None) -> Residual:
        return Residual(argument, output, tuple(self.steps), entrance, self.clamped)


class _Backwards:
    """Walks from a value of a block back to one of its arguments, over sums only."""

    def __init__(self, block: Call, target: Value | None = None) -> None:
        self.block = block
        self.target = target
        self.known: dict[tuple[int, int], _Way | None] = {}

    def walk(self, value: Value, row: int) -> _Way | None:
        """The way to a value whose first row lies at `row` of it; None where there is none."""
        key = (value.number, row)
        if key not in self.known:
            self.known[key] = None
            self.known[key] = self._walked(value, row)
        way = self.known[key]
        return None if way is None else replace(way, steps=list(way.steps))

    def _walked(self, value: Value, row: int) -> _Way | None:
        if value is self.target:
            return _Way(None, [value])
        if self.target is None:
            place = argument_of(value, self.block)
            if place is not None:
                return _Way(place, [value])
        op = value.made_by
        if op is None or not made_in(value, self.block):
            return None
        if op.name in HANDED_ON | CUT:
            return self._cut(value, row)
        if op.name in JOINED:
            return self._joined(value, row)
        if op.name == "addcmul":
            first, *factors = op.takes
            way = self.walk(first, row)
            if way is not None:
                way.steps += [Added(tuple(factors)), value]
            return way
        if op.name in ADDED and len(op.takes) == 2:
            for stream, term in (op.takes, op.takes[::-1]):
                if stream.tensor.ndim < 3 <= term.tensor.ndim:
                    continue
                way = self.walk(stream, row)
                if way is not None:
                    way.steps += [Added((term,)), value]
                    return way
        return None

    def _cut(self, value: Value, row: int) -> _Way | None:
        assert value.made_by is not None
        source = value.made_by.takes[0]
        cut = value.made_by.name in CUT
        part, whole = value.tensor, source.tensor
        if cut and part.ndim == whole.ndim >= 3 and rows_of(part) < rows_of(whole):
            row += int(part.storage_offset() - whole.storage_offset()) // whole.stride(1)
        way = self.walk(source, row)
        if way is None:
            return None
        way.clamped = way.clamped or value.made_by.name in LIMITS
        if cut:
            way.joined = True
        elif not way.joined:
            way.steps.append(value)
        return way

    def _joined(self, value: Value, row: int) -> _Way | None:
        assert value.made_by is not None
        for part in value.made_by.takes:
            if part.tensor.ndim >= 3 and row >= rows_of(part.tensor):
                row -= rows_of(part.tensor)
                continue
            way = self.walk(part, row)
            if way is not None:
                way.joined = True
                way.steps.append(value)
            return way
        return None
