"""What an attention module of a block is: its streams, heads, projections, norms before rope."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lens.architectures.spec import Attention, Gate, Projection
from diffusion_lens.describing.origins import (
    ADDED,
    CUT,
    HANDED_ON,
    JOINED,
    MULTIPLIED,
    SCALED,
    first_tensor,
    is_plain_norm,
    last_layer,
    made_from,
    made_in,
    passes_on,
    segments,
    sources,
)
from diffusion_lens.describing.products import Product
from diffusion_lens.describing.streams import Streams
from diffusion_lens.describing.terms import inside
from diffusion_lens.describing.tracing import Call, Op, Trace, Value

MOVED = HANDED_ON | CUT | JOINED | {"stack", "repeat_interleave", "setitem", "pad"}
"""Torch calls that put numbers elsewhere and change none."""


@dataclass
class Found:
    """An attention module as far as it is read.

    Attributes:
        name: As in hook points.
        call: The module's call.
        products: Its products, in order.
        main: The one of the streams' own keys; None for linear attention.
        queries: Streams along the queries, in order.
        keys: Streams along the keys, in order.
        sizes: Number of heads and width of a head.
        projections: For each query stream what takes its z.
        before_rope: For each stream what gives its q and k before rotary embedding.
        heads_first: As in `Attention`.
        heads_joined: As in `Attention`.
        gated: As in `Attention`.
        context: As in `Attention`.
        outputs: For each stream its place in the output.
        gates: For each stream its gate.
        kept: As in `Attention`.
        doubt: What could not be read of it; that of products apart.
    """

    name: str
    call: Call
    products: list[Product]
    main: Product | None
    queries: tuple[str, ...]
    keys: tuple[str, ...]
    sizes: tuple[int, int]
    projections: dict[str, Projection] = field(default_factory=dict)
    before_rope: dict[str, tuple[str | None, str]] = field(default_factory=dict)
    heads_first: bool = False
    heads_joined: bool = False
    gated: bool = False
    context: str | None = None
    outputs: dict[str, int | None] = field(default_factory=dict)
    gates: dict[str, Gate] = field(default_factory=dict)
    kept: str | None = None
    doubt: str = ""

    def described(self, block: Call) -> Attention:
        """As the description of an architecture has it."""
        module = self.call.module
        heads, d_head = self.sizes
        told = (getattr(module, "heads", None), getattr(module, "inner_dim", None))
        return Attention(
            name=self.name,
            module=inside(self.call.path, block),
            queries=self.queries,
            keys=self.keys,
            projections=self.projections,
            outputs=self.outputs,
            gates=self.gates,
            before_rope=self.before_rope,
            heads_first=self.heads_first,
            heads_joined=self.heads_joined,
            products=tuple("" if one is self.main else "+".join(one.keys) for one in self.products),
            context=self.context,
            sizes=None if told == (heads, heads * d_head) else (heads, d_head),
            gated=self.gated,
            kept=self.kept,
        )


def attentions(trace: Trace, streams: Streams, made: Sequence[Product]) -> list[Found]:
    """The attention modules of a block, in order of their calls."""
    by_module: dict[Call, list[Product]] = {}
    for one in made:
        by_module.setdefault(one.module, []).append(one)
    linear = _linear(trace, streams, by_module)
    found: list[Found] = []
    for call in sorted([*by_module, *linear], key=lambda call: call.first):
        taken = {one.name for one in found}
        if call in linear:
            one = _linear_attention(call, linear[call], streams, taken)
            one.doubt = _why_not_linear(trace, one)
            found.append(one)
        else:
            found.append(_attention(trace, call, by_module[call], streams, taken))
    return found


def _attention(
    trace: Trace, call: Call, made: list[Product], streams: Streams, taken: set[str]
) -> Found:
    own = [one for one in made if not set(one.keys) - {"img", "txt"}]
    main = own[0] if own else made[0]
    query = main.taken[0]
    sizes = (query.shape[1], query.shape[3])
    name = _name(call, main.queries, main.keys, taken)
    kept = _mask_of_samples(trace, call, made)
    made = made if kept is None else [main]
    found = Found(name, call, made, main, main.queries, main.keys, sizes, kept=kept)
    if set(main.keys) - set(main.queries):
        found.context = _context(call, main)
    _find_projections(found, main, streams.block)
    _find_rope(found, main, streams)
    return found


def _linear(trace: Trace, streams: Streams, described: Container[Call]) -> dict[Call, Op]:
    """Modules that multiply two things that they make of a stream, and how they do so first."""
    found: dict[Call, Op] = {}
    for op in trace.within(streams.block):
        if op.scope is None or op.scope in described or not hasattr(op.scope.module, "to_q"):
            continue
        if multiplies_tokens(op, streams):
            found.setdefault(op.scope, op)
    return found


def multiplies_tokens(op: Op, streams: Streams) -> bool:
    """Whether a torch call multiplies what is made of tokens with what is made of tokens."""
    both = op.takes[:2]
    return op.name in MULTIPLIED and len(both) == 2 and all(map(streams.own, both))


def _linear_attention(call: Call, op: Op, streams: Streams, taken: set[str]) -> Found:
    layer = last_layer(call)
    order = tuple(sorted(streams.behind(first_tensor(call))))
    heads = op.takes[0].shape[1] if op.takes[0].tensor.ndim == 4 else 1
    width = 0 if layer is None else first_tensor(layer).shape[-1]
    sizes = (heads, width // heads)
    found = Found(_name(call, order, order, taken), call, [], None, order, order, sizes)
    if layer is not None:
        projection = Projection(inside(layer.path, streams.block), order)
        found.projections = dict.fromkeys(order, projection)
    return found


def _why_not_linear(trace: Trace, found: Found) -> str:
    """Why what multiplies matrices may be no linear attention; empty where it is."""
    if any(op.name == "softmax" for op in trace.within(found.call)):
        return "its weights are worked out in steps, not by torch.scaled_dot_product_attention"
    if len(found.queries) > 1:
        return f"in which order {' and '.join(found.queries)} lie in it cannot be told"
    heads = getattr(found.call.module, "heads", found.sizes[0])
    if heads != found.sizes[0]:
        return f"it says that it has {heads} heads, and multiplies {found.sizes[0]} matrices"
    return ""


def _name(call: Call, queries: Sequence[str], keys: Sequence[str], taken: set[str]) -> str:
    """The name of an attention module, by what meets in it; its own where that has been given."""
    of = f"{queries[0]}_" if queries and not set(queries) & {"img", "txt"} else ""
    if set(queries) & set(keys):
        return "self_attn" if "attn" in taken and not of else f"{of}attn"
    name = f"{of}cross_attn"
    return call.path.rpartition(".")[2] if name in taken else name


def _context(call: Call, product: Product) -> str | None:
    """The module's argument that keys come from and queries do not."""
    query, key, _ = product.taken
    mine = {value: place[0] for place, value in call.takes.items()}

    def arguments(value: Value) -> set[str | int]:
        return {mine[one] for one in sources(value, call, ends=mine) if one in mine}

    only = arguments(key) - arguments(query)
    return str(sorted(map(str, only))[0]) if only else None


def _mask_of_samples(trace: Trace, call: Call, made: Sequence[Product]) -> str | None:
    """The denoiser's argument with a mask of tokens, where each sample has a product of its own."""
    query, batch = made[0].taken[0], len(first_tensor(call).tensor)
    if len(query.tensor) == batch or len(made) != batch:
        return None
    masks = [value.tensor for value in call.takes.values() if value.tensor.ndim == 2]
    return next(
        (
            name
            for name, given in trace.inputs.items()
            for mask in masks
            if isinstance(given, Tensor) and torch.equal(given, mask)
        ),
        None,
    )


def _find_projections(found: Found, main: Product, block: Call) -> None:
    """Follow z to the layers that take it."""
    heads, d_head = found.sizes
    width = heads * d_head
    z = main.op.gives[0]
    flat = z.tensor.transpose(1, 2).flatten(2)
    waiting, seen = [(z, False)], set()
    while waiting:
        value, gated = waiting.pop(0)
        if value.number in seen:
            continue
        seen.add(value.number)
        takers = [
            call
            for call, _ in value.taken_by
            if call.lies_in(block) and _is_layer(call.module) and value.shape[-1] >= width
        ]
        if takers and value.tensor.ndim >= 3:
            found.gated = found.gated or gated
            for call in takers:
                _project(found, main, block, call, value, flat, width)
            continue
        for op in value.used_by:
            if op.gives[0].number > block.last:
                continue
            factor = op.name in SCALED and len(op.takes) == 2
            if op.name in MOVED | ADDED or op.name in SCALED:
                waiting += [(one, gated or factor) for one in op.gives]


def _is_layer(module: nn.Module) -> bool:
    """Whether a module has weights of its own and is no norm."""
    own = next(module.parameters(recurse=False), None) is not None
    return isinstance(module, nn.Linear) or (own and not is_plain_norm(module))


def _project(
    found: Found, main: Product, block: Call, call: Call, value: Value, flat: Any, width: int
) -> None:
    """Note a layer that takes z, and the streams along it."""
    given = value.tensor[..., :width]
    given = given.reshape(given.shape[0], -1, width)
    given = given[: len(flat)]  # the first sample, where each has a product of its own
    length, at = given.shape[1], 0
    if given.shape[0] == flat.shape[0] and length < flat.shape[1]:
        padded = F.pad(flat, (0, 0, 0, length))  # as it is where tokens were dropped
        same = [
            one for one in range(flat.shape[1]) if torch.equal(given, padded[:, one : one + length])
        ]
        at = same[0] if same else 0
    streams = segments(list(main.query[at : at + length]))
    fused = value.shape[-1] > width
    for stream in streams:
        path = inside(call.path, block)
        found.projections.setdefault(stream, Projection(path, streams, fused))


def _find_rope(found: Found, main: Product, streams: Streams) -> None:
    """The modules whose outputs are queries and keys before they are turned."""
    per_stream: dict[tuple[str, str], tuple[Call, Value]] = {}
    turned_ones: set[tuple[str, str]] = set()
    for which, value in zip("qk", main.taken, strict=False):
        for call, given, turned in _last_modules(value, found.call):
            for stream in streams.behind(given):
                per_stream.setdefault((stream, which), (call, given))
                turned_ones |= {(stream, which)} if turned else set()
    if not turned_ones:
        return
    for stream in dict.fromkeys((*found.queries, *found.keys)):
        query, key = per_stream.get((stream, "q")), per_stream.get((stream, "k"))
        if key is None or (query is None and (stream, "k") not in turned_ones):
            continue
        if query is None and stream in found.queries:
            continue
        first = None if query is None else inside(query[0].path, streams.block)
        found.before_rope[stream] = (first, inside(key[0].path, streams.block))
        _note_axes(found, (query or key)[1])


def _note_axes(found: Found, given: Value) -> None:
    heads, _ = found.sizes
    if given.tensor.ndim == 4:
        found.heads_first = given.shape[1] == heads and given.shape[2] != heads
    else:
        found.heads_joined = True


def _last_modules(value: Value, within: Call) -> list[tuple[Call, Value, bool]]:
    """The modules that a query or key came from, and whether it was turned since."""
    found, waiting, seen = [], [(value, False)], set()
    while waiting:
        one, turned = waiting.pop()
        if (one.number, turned) in seen:
            continue
        seen.add((one.number, turned))
        calls = [
            call
            for call, _ in one.returned_by
            if call.lies_in(within) and not passes_on(call.module) and not _turns(call.module)
        ]
        if calls:
            found.append((calls[-1], one, turned))
            continue
        op = one.made_by
        if op is None or not made_in(one, within):
            continue
        still = op.name in MOVED
        waiting += [(source, turned or not still) for source in made_from(op)]
        if op.name == "setitem":
            waiting += [(source, True) for source in op.takes[1:]]
    return found


def _turns(module: nn.Module) -> bool:
    """Whether a module is a rotary embedding."""
    kind = type(module).__name__
    return "Rot" in kind or "Rope" in kind
