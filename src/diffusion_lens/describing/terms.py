"""What a residual is given: which module made it, and what it passed on the way."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from diffusion_lens.architectures.spec import Gate
from diffusion_lens.describing.origins import (
    ADDED,
    CUT,
    HANDED_ON,
    JOINED,
    LIMITS,
    PRODUCT,
    SCALED,
    argument_of,
    first_tensor,
    is_plain_norm,
    made_in,
    outermost,
    rows_of,
    sources,
)
from diffusion_lens.describing.residuals import Added
from diffusion_lens.describing.streams import Streams
from diffusion_lens.describing.tracing import Call, Place, Value
from diffusion_lens.engine.gates import factor_of
from diffusion_lens.errors import EngineError

ACTIVATIONS = frozenset({"tanh", "sigmoid"})


@dataclass(frozen=True)
class Term:
    """One update of a residual.

    Attributes:
        raw: The module call that gave it before factors; None where no module did.
        place: Where in that call's output it lies.
        factor: What it is multiplied with.
        norm: The module that it passes before that.
        cut: Whether it is part of a longer sequence.
        doubt: What could not be read of it; empty where nothing.
    """

    raw: Call | None
    place: Place = ()
    factor: Value | None = None
    norm: Call | None = None
    cut: bool = False
    doubt: str = ""


def terms(added: Added, streams: Streams) -> list[Term]:
    """The updates that a term of a sum consists of: one, or several that are added first."""
    if len(added.factors) == 1:
        return _resolve(added.factors[0], Term(None), streams)
    return _scaled(added.factors, Term(None), streams)


def _resolve(value: Value, term: Term, streams: Streams) -> list[Term]:
    block = streams.block
    while True:
        hit = outermost(value, block)
        if hit is not None:
            call, place = hit
            if is_plain_norm(call.module) and not _attends(value, block, call):
                term, value = replace(term, norm=call), first_tensor(call)
                continue
            return [replace(term, raw=call, place=place)]
        op = value.made_by
        if op is None or not made_in(value, block):
            return [replace(term, doubt="an argument of the block is added")]
        if op.name in HANDED_ON | CUT:
            term, value = replace(term, cut=term.cut or op.name in CUT), op.takes[0]
        elif op.name in JOINED:
            value = max(op.takes, key=lambda one: rows_of(one.tensor))
            term = replace(term, cut=True)
        elif op.name in SCALED and len(op.takes) == 2:
            return _scaled(op.takes, term, streams)
        elif op.name in ADDED and len(op.takes) == 2 and all(map(streams.own, op.takes)):
            return [found for one in op.takes for found in _resolve(one, term, streams)]
        else:
            return [replace(term, doubt=f"it is made by torch.{op.name} in the block itself")]


def _scaled(factors: tuple[Value, ...], term: Term, streams: Streams) -> list[Term]:
    """A product of what the block makes of its streams and a factor."""
    own = [one for one in factors if streams.own(one)]
    if len(own) != 1 or term.factor is not None:
        return [replace(term, doubt="it has more than one factor")]
    other = factors[1] if own[0] is factors[0] else factors[0]
    return _resolve(own[0], replace(term, factor=other), streams)


def _attends(value: Value, block: Call, norm: Call) -> bool:
    """Whether a norm holds an attention product."""
    return any(
        one.made_by is not None
        and one.made_by.name == PRODUCT
        and one.made_by.scope is not None
        and (one.made_by.scope is norm or one.made_by.scope.lies_in(norm))
        for one in sources(value, block)
    )


def gate_of(term: Term, block: Call) -> tuple[Gate | None, str]:
    """The gate on an update, and what could not be read of it."""
    norm = None if term.norm is None else inside(term.norm.path, block)
    if term.factor is None:
        return (None if norm is None else Gate(norm=norm)), ""
    source, known, doubt = _back(term.factor, block)
    if doubt:
        return None, doubt
    for gate in (*_candidates(source, known), *_rows(block, known)):
        if _makes(gate, block, source, term.factor):
            return replace(gate, norm=norm), ""
    return None, "no part of what was given equals its factor"


def inside(path: str, block: Call) -> str:
    """A module's path from the block."""
    return path.removeprefix(f"{block.path}.")


def _back(value: Value, block: Call) -> tuple[Value, dict[str, Any], str]:
    """What a factor comes from, and what it passes on the way."""
    known: dict[str, Any] = {}
    while True:
        hit = _flat(value, block)
        if hit is not None:
            call, place = hit
            known["module"] = inside(call.path, block)
            if place:
                known["index"] = place[0]
            return value, known, ""
        place = argument_of(value, block)
        if place is not None:
            known["argument"] = place[0]
            if len(place) > 1:
                known["index"] = place[1]
            return value, known, "" if len(place) < 3 else "it lies in nested containers"
        op = value.made_by
        if op is None or not made_in(value, block):
            return value, known, "its factor comes from outside the block"
        if op.name in LIMITS:
            known["limit"] = float(op.kwargs.get("max", op.args[2] if len(op.args) > 2 else 0.0))
            value = op.takes[0]
        elif op.name in ACTIVATIONS:
            known["activation"] = op.name
            value = op.takes[0]
        elif op.name in HANDED_ON | CUT:
            value = op.takes[0]
        elif op.name in ADDED and len(op.takes) == 2:
            table = [path for one in op.takes if (path := _parameter(one, block))]
            rest = [one for one in op.takes if not _parameter(one, block)]
            if len(table) != 1 or "table" in known:
                return value, known, "its factor is a sum"
            known["table"] = inside(table[0], block)
            value = rest[0]
        else:
            return value, known, f"its factor is made by torch.{op.name}"


def _flat(value: Value, block: Call) -> tuple[Call, Place] | None:
    """The outermost module call that gave a value in no nested container, and where."""
    found = [(call, at) for call, at in value.returned_by if call.lies_in(block) and len(at) < 2]
    return found[-1] if found else None


def _parameter(value: Value, block: Call) -> str:
    """The parameter that a value is, or is cut from."""
    while not value.parameter and value.made_by is not None and made_in(value, block):
        if value.made_by.name not in HANDED_ON | CUT:
            return ""
        value = value.made_by.takes[0]
    return value.parameter


def _candidates(source: Value, known: dict[str, Any]) -> list[Gate]:
    """What a factor may be of a source."""
    if "index" in known:
        return [Gate(**known)]
    whole = [] if "table" in known else [Gate(**known)]
    return whole + [
        Gate(**known, index=index, pieces=pieces, stacked=stacked, upcast=upcast)
        for pieces in range(2, 17)
        for stacked in (False, True)
        if source.shape[-2 if stacked and source.tensor.ndim > 1 else -1] % pieces == 0
        for index in range(pieces)
        for upcast in (False, True)
    ]


def _rows(block: Call, known: dict[str, Any]) -> list[Gate]:
    """What it may be with one row of a table that has others than the source has factors."""
    if "table" not in known or "index" in known:
        return []
    count = len(block.module.get_parameter(known["table"]))
    return [Gate(**known, row=row) for row in range(count)]


def _makes(gate: Gate, block: Call, source: Value, factor: Value) -> bool:
    """Whether a gate read in this way is the factor that was used."""
    given: Any = source.tensor
    if gate.index is not None and gate.pieces == 1:
        given = {gate.index: given}
    try:
        found = factor_of(gate, block.module, given)
    except (RuntimeError, EngineError, IndexError):
        return False
    if found.numel() != factor.tensor.numel():
        return False
    return torch.equal(found.flatten().to(factor.tensor.dtype), factor.tensor.flatten())
