"""Which streams lie along the queries and the keys of each attention product of a block."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from diffusion_lens.describing.origins import PRODUCT, segments
from diffusion_lens.describing.rows import disturbed
from diffusion_lens.describing.streams import Streams
from diffusion_lens.describing.tracing import (
    Call,
    Op,
    Place,
    Trace,
    Value,
    bound,
    copied,
    replaced,
    tensors,
)


@dataclass(frozen=True)
class Product:
    """An attention product.

    Attributes:
        op: The torch call.
        module: The module call that made it.
        query: The stream of each of its queries.
        key: The stream of each of its keys.
        doubt: What could not be read of it.
    """

    op: Op
    module: Call
    query: tuple[str, ...]
    key: tuple[str, ...]
    doubt: str = ""

    @property
    def queries(self) -> tuple[str, ...]:
        """The streams along its queries, in order."""
        return segments(list(self.query))

    @property
    def keys(self) -> tuple[str, ...]:
        """The streams along its keys, in order."""
        return segments(list(self.key))

    @property
    def taken(self) -> tuple[Value, Value, Value]:
        """Queries, keys and values."""
        query, key, value = self.op.takes[:3]
        return query, key, value


def products(trace: Trace, streams: Streams) -> list[Product]:
    """The attention products of a block, in order."""
    block = streams.block
    ops = [op for op in trace.within(block) if op.name == PRODUCT]
    plain = _replayed(block, {})
    names = list(dict.fromkeys(name for rows in streams.arguments.values() for name in rows.order))
    moved = {name: _replayed(block, _tokens_of(streams, name)) for name in names}
    made = []
    for at, op in enumerate(ops):
        assert op.scope is not None
        sides, doubts = [], []
        for side in (0, 1):
            rows = _moved_rows(plain, moved, at, side) if at < len(plain) else []
            if any(len(one) > 1 for one in rows):
                known = streams.behind(op.takes[side])
                if len(known) == 1:
                    rows = [known] * len(rows)
                else:
                    doubts.append(f"its {('queries', 'keys')[side]} move with several streams")
            named = _filled(rows)
            if not all(named):
                doubts.append(f"no stream moves its {('queries', 'keys')[side]}")
            sides.append(tuple(named))
        made.append(Product(op, op.scope, sides[0], sides[1], "; ".join(doubts)))
    return made


def _tokens_of(streams: Streams, name: str) -> dict[Place, Tensor]:
    """For each argument of a block a mask of one stream's tokens."""
    return {
        place: rows.mask(name, streams.block.takes[place].tensor.ndim)
        for place, rows in streams.arguments.items()
        if name in rows.names
    }


def _replayed(block: Call, masks: Mapping[Place, Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The queries, keys and values of a block alone, with noise where a mask is."""
    assert block.given is not None
    args, kwargs = copied(block.given[0]), copied(block.given[1])
    order = list(bound(block.module, args, {}))
    given: Any = {**dict(enumerate(args)), **kwargs}
    for place, mask in masks.items():
        first: Any = place[0] if place[0] in kwargs else order.index(str(place[0]))
        where = (first, *place[1:])
        value = dict(tensors(given))[where]
        given = replaced(given, where, torch.where(mask, disturbed(value), value))
    seeing = _Seeing()
    with torch.no_grad(), seeing:
        block.module(
            *(given[at] for at in range(len(args))), **{name: given[name] for name in kwargs}
        )
    return seeing.found


def _moved_rows(
    plain: Sequence[Any], moved: Mapping[str, Sequence[Any]], at: int, side: int
) -> list[set[str]]:
    """For each query or key of a product the streams that it moves with."""
    before = plain[at][side]
    rows: list[set[str]] = [set() for _ in range(before.shape[-2])]
    for name, seen in moved.items():
        if at >= len(seen) or seen[at][side].shape != before.shape:
            continue
        changed = (seen[at][side] != before).any(-1).flatten(0, -2).any(0)
        for row in changed.nonzero().flatten().tolist():
            rows[row].add(name)
    return rows


def _filled(rows: list[set[str]]) -> list[str]:
    """Names of the rows; those that nothing moves are text, as registers and padding are."""
    named = ["+".join(sorted(one)) for one in rows]
    known = [one for one in named if one]
    fill = "txt" if "txt" in known else (known[0] if known else "")
    return [one or fill for one in named]


class _Seeing(TorchFunctionMode):
    """Sees queries, keys and values of attention products."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Tensor, Tensor, Tensor]] = []

    def __torch_function__(
        self, function: Callable, _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
            found = (given["query"].clone(), given["key"].clone(), given["value"].clone())
            self.found.append(found)
        return function(*args, **kwargs)
