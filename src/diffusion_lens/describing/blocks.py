"""The description of a block, read off one evaluation."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from diffusion_lens.architectures.spec import BlockSpec, Mid, Mlp, Stream
from diffusion_lens.describing.attentions import Found, attentions, multiplies_tokens
from diffusion_lens.describing.origins import (
    ADDED,
    CASTS,
    argument_of,
    first_tensor,
    last_layer,
)
from diffusion_lens.describing.products import products
from diffusion_lens.describing.residuals import Added, Residual
from diffusion_lens.describing.rows import Rows
from diffusion_lens.describing.streams import Streams
from diffusion_lens.describing.terms import Term, gate_of, inside, terms
from diffusion_lens.describing.tracing import Call, Place, Trace, Value

MIDDLES = {
    1: ("resid_mid",),
    2: ("resid_mid_self", "resid_mid"),
    3: ("resid_mid_self", "resid_mid_cross", "resid_mid"),
}
"""Names of the places between sublayers, by how many there are."""


@dataclass
class Reading:
    """What was read of one block.

    Attributes:
        call: Its call.
        spec: Its description.
        doubts: What could not be read, each as a sentence; such a block is not described by this
            alone.
        rows: For each of its arguments whose tokens belong to streams, which they are.
    """

    call: Call
    spec: BlockSpec
    rows: Mapping[Place, Rows]
    doubts: list[str] = field(default_factory=list)

    @property
    def joins(self) -> bool:
        """Whether image queries meet text keys in it."""
        return any("img" in one.queries and "txt" in one.keys for one in self.spec.attentions)

    @property
    def precision(self) -> torch.dtype:
        """Of what the block gave."""
        return next(iter(self.call.gives.values())).tensor.dtype

    def enters_unchanged(self, stream: Stream) -> bool:
        """Whether the module at a stream's entrance takes the stream as the block is given it."""
        given = [value for at, value in self.call.takes.items() if at[0] == stream.argument]
        path = f"{self.call.path}.{stream.entrance}"
        return any(call.path == path for value in given for call, _ in value.taken_by)


def read_block(trace: Trace, streams: Streams) -> Reading:
    """Describe a block.

    Args:
        trace: An evaluation.
        streams: The block's streams.
    """
    return _Reader(trace, streams).read()


class _Reader:
    """Puts a block's description together."""

    def __init__(self, trace: Trace, streams: Streams) -> None:
        self.trace = trace
        self.streams = streams
        self.block = streams.block
        self.doubts: list[str] = []
        made = products(trace, streams)
        self.doubts += [
            f"{inside(one.module.path, self.block)}: {one.doubt}" for one in made if one.doubt
        ]
        self.attentions = attentions(trace, streams, made)
        self.doubts += [
            f"{inside(one.call.path, self.block)}: {one.doubt}"
            for one in self.attentions
            if one.doubt
        ]
        self.mlps: dict[str, Mlp] = {}

    def read(self) -> Reading:
        found: dict[str, Stream] = {}
        for one in self.streams.residuals:
            rows = self.streams.arguments.get(one.argument)
            if one.argument[1:] or one.output[1:] or _named(one.output):
                self.doubts.append(
                    f"`{one.argument[0]}` comes or is returned in a container that is no tuple of "
                    f"tensors, at {[*one.argument]} and {[*one.output]}"
                )
                continue
            if rows is None:
                self.doubts.append(f"no input moves `{one.argument[0]}`")
                continue
            if rows.unmoved:
                self.doubts.append(f"no input moves {rows.unmoved} tokens of `{one.argument[0]}`")
            if rows.both:
                self.doubts.append(
                    f"image and text both move {rows.both} tokens of `{one.argument[0]}`, not all"
                )
            for name in dict.fromkeys(rows.order):
                found[name] = self._stream(name, one, rows.order, first=rows.axis == 0)
        found |= self._not_returned(found)
        specs = tuple(one.described(self.block) for one in self.attentions)
        return Reading(
            self.block, BlockSpec(found, specs, self.mlps), self.streams.arguments, self.doubts
        )

    def _not_returned(self, found: Mapping[str, Stream]) -> dict[str, Stream]:
        """Streams that come in and ask, and that the block does not hand on."""
        asking = {name for one in self.attentions for name in one.queries} - set(found)
        return {
            name: Stream(str(at[0]), None, updates=(), returned=False)
            for at, rows in self.streams.arguments.items()
            for name in asking & set(rows.order)
        }

    def _stream(self, name: str, one: Residual, order: tuple[str, ...], *, first: bool) -> Stream:
        within = order if len(order) > 1 else ()
        mids: list[tuple[Call, int, bool, tuple[str, ...]]] = []
        pending: list[str] = []
        entrance = one.entrance
        taker = None if entrance is None else self._taker(one.way[0])  # type: ignore[arg-type]
        entrance = entrance if taker is None else taker[0]
        for at, step in enumerate(one.way[1:], 1):
            if isinstance(step, Added):
                if self._is_given(step) and not pending and not mids:
                    taker = self._taker(one.way[at + 1])  # type: ignore[arg-type]
                    entrance = entrance if taker is None else taker[0]
                else:
                    pending += self._updates(name, step, within)
            elif pending:
                taker = self._taker(step)
                if taker is not None:
                    mids.append((*taker, tuple(pending)))
                    pending = []
        used = {*pending, *(update for _, _, _, updates in mids for update in updates)}
        beside = [one for one in self.attentions if name in one.queries and one.name not in used]
        for attention in beside:
            taker = self._beside(name, one, attention)
            if taker is not None:
                mids.append((*taker, (attention.name,)))
        if any("mlp" in updates for *_, updates in mids):
            self.doubts.append(
                f"{name}: its MLP comes before an attention, and no place has a name"
            )
        names = MIDDLES.get(len(mids), tuple(f"resid_mid_{at}" for at in range(len(mids))))
        return Stream(
            argument=str(one.argument[0]),
            output=None if not one.output else one.output[0],  # type: ignore[arg-type]
            mids=tuple(
                Mid(
                    called,
                    inside(call.path, self.block),
                    updates,
                    argument,
                    copied,
                    beside=bool(set(updates) & {attention.name for attention in beside}),
                )
                for called, (call, argument, copied, updates) in zip(names, mids, strict=True)
            ),
            updates=tuple(pending),
            within=within,
            entrance=None if entrance is None else inside(entrance.path, self.block),
            clamped=one.clamped,
            positions_first=first,
        )

    def _is_given(self, added: Added) -> bool:
        """Whether an argument of the block is added, such as positions."""
        return all(argument_of(one, self.block) is not None for one in added.factors)

    def _updates(self, stream: str, added: Added, within: tuple[str, ...]) -> list[str]:
        names: list[str] = []
        for term in terms(added, self.streams):
            if term.raw is None or term.doubt:
                self.doubts.append(f"{stream}: an update, {term.doubt}")
                continue
            gate, doubt = gate_of(term, self.block)
            if doubt:
                self.doubts.append(
                    f"{stream}: the gate of {inside(term.raw.path, self.block)}, {doubt}"
                )
            names += self._sublayer(stream, term, gate, within)
        return names

    def _sublayer(self, stream: str, term: Term, gate: Any, within: tuple[str, ...]) -> list[str]:
        assert term.raw is not None
        path = inside(term.raw.path, self.block)
        for one in self.attentions:
            projection = one.projections.get(stream)
            own = one.call is term.raw or one.call.lies_in(term.raw)
            if projection is None or not (own or projection.module == path):
                continue
            if gate is not None:
                one.gates[stream] = gate
            if projection.fused:
                self.mlps[stream] = Mlp(None, projection.module, gate)
                return [one.name, "mlp"]
            one.outputs[stream] = _only(term.place)
            return [one.name]
        if any(one.call is term.raw or one.call.lies_in(term.raw) for one in self.attentions):
            self.doubts.append(f"{stream}: what takes the z of {path} cannot be told")
            return []
        if stream in self.mlps:
            self.doubts.append(f"{stream}: a second MLP, {path}")
            return []
        if any(multiplies_tokens(op, self.streams) for op in self.trace.within(term.raw)):
            self.doubts.append(f"{stream}: {path} stands where an MLP does, and mixes tokens")
            return []
        down = last_layer(term.raw)
        calls = [call for call in self.trace.calls_of(term.raw.path) if call.lies_in(self.block)]
        shared = within or (self.attentions[0].queries if term.cut and self.attentions else ())
        self.mlps[stream] = Mlp(
            path,
            None if down is None else inside(down.path, self.block),
            gate,
            shared if len(shared) > 1 else (),
            calls.index(term.raw) if len(calls) > 1 else None,
            _maps(term.raw, self.streams.residuals[0].states[0].shape[-1]),
        )
        return ["mlp"]

    def _beside(
        self, stream: str, one: Residual, attention: Found
    ) -> tuple[Call, int, bool] | None:
        """What takes the sum of a residual and an attention, though the residual goes on alone."""
        for state in one.states:
            for op in state.used_by:
                if op.name not in ADDED or op.scope is not self.block or len(op.takes) != 2:
                    continue
                other = op.takes[1] if op.takes[0] is state else op.takes[0]
                found = terms(Added((other,)), self.streams)
                if [term.raw for term in found] == [attention.call]:
                    self._updates(stream, Added((other,)), ())
                    return self._taker(op.gives[0])
        return None

    def _taker(self, state: Value) -> tuple[Call, int, bool] | None:
        """The first module of the block that is given a state of the residual, and as a copy?"""
        casts = [
            value
            for op in state.used_by
            if op.name in CASTS and op.scope is self.block
            for value in op.gives
        ]
        itself = self.block in state.cast_in  # what a cast to its own precision gives back
        for value, copied in ((state, itself), *((one, True) for one in casts)):
            for call, place in value.taken_by:
                if call.inside is self.block:
                    return call, _position(call, place), copied
        return None


def _maps(raw: Call, width: int) -> str:
    """What maps an MLP works on; empty where it works on tokens."""
    given = first_tensor(raw)
    if given.tensor.ndim < 4:
        return ""
    return "channel last" if given.shape[-1] == width else "channel first"


def _named(place: Place) -> bool:
    return any(isinstance(one, str) for one in place)


def _only(place: Place) -> int | None:
    return None if not place else int(place[0])


def _position(call: Call, place: Place) -> int:
    """Position of an argument among those that a module's forward takes."""
    names = list(inspect.signature(type(call.module).forward).parameters)[1:]
    return names.index(str(place[0])) if str(place[0]) in names else 0
