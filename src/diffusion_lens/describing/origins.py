"""Where a value in a block came from: handed on as it is, cut out, joined, added, scaled."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator

from torch import Tensor, nn

from diffusion_lens.describing.tracing import Call, Op, Place, Value

HANDED_ON = frozenset(
    {
        *("to", "float", "half", "double", "bfloat16", "type", "type_as", "contiguous", "clone"),
        *("detach", "alias", "clip", "clamp", "nan_to_num", "dropout", "reshape", "view"),
        *("view_as", "reshape_as", "unsqueeze", "squeeze", "flatten", "unflatten", "transpose"),
        *("permute", "swapaxes", "movedim", "expand", "expand_as", "mT", "T"),
    }
)
"""Torch calls whose result is their first argument in another shape or precision."""

CUT = frozenset(
    {"getitem", "split", "split_with_sizes", "chunk", "narrow", "unbind", "tensor_split", "select"}
)
"""Those that give a part of it."""

JOINED = frozenset(["cat", "concat", "concatenate"])
ADDED = frozenset(["add", "radd", "iadd"])
SCALED = frozenset(["mul", "rmul", "imul", "multiply"])
PRODUCT = "scaled_dot_product_attention"
MULTIPLIED = frozenset(["matmul", "bmm", "einsum", "baddbmm"])
LIMITS = frozenset({"clamp", "clip"})
CASTS = frozenset(["to", "float", "half", "double", "bfloat16", "type", "type_as"])


def made_from(op: Op) -> tuple[Value, ...]:
    """The values that a torch call computes with; those that say a shape or a type apart."""
    return op.takes[:1] if op.name in HANDED_ON else op.takes


def made_in(value: Value, call: Call) -> bool:
    """Whether a torch call inside a module call made the value."""
    return value.made_by is not None and value.number > call.first


def is_plain_norm(module: nn.Module) -> bool:
    """Whether a module norms and does nothing else that is learned."""
    return "Norm" in type(module).__name__ and not any(
        isinstance(one, nn.Linear) for one in module.modules()
    )


def passes_on(module: nn.Module) -> bool:
    """Whether a module does nothing in evaluation mode."""
    return isinstance(module, nn.Identity | nn.Dropout)


def outermost(value: Value, block: Call) -> tuple[Call, Place] | None:
    """The outermost module call in a block that gave the value as it is, and where."""
    found = [
        (call, at)
        for call, at in value.returned_by
        if call.lies_in(block) and not passes_on(call.module)
    ]
    return found[-1] if found else None


def first_tensor(call: Call) -> Value:
    """What a module with one input took."""
    return next(iter(call.takes.values()))


def all_taken(op: Op) -> tuple[Value, ...]:
    """All values among a torch call's arguments."""
    return op.takes


def sources(
    value: Value,
    within: Call,
    *,
    ends: Container[Value] = (),
    through: Callable[[Op], tuple[Value, ...]] = all_taken,
) -> Iterator[Value]:
    """A value and all that it was made from inside a module call, each once.

    Args:
        value: The value.
        within: The module call.
        ends: Values behind which nothing is looked at.
        through: Which of a torch call's values are gone on with.
    """
    waiting, seen = [value], set()
    while waiting:
        one = waiting.pop()
        if one.number in seen:
            continue
        seen.add(one.number)
        yield one
        if one not in ends and one.made_by is not None and made_in(one, within):
            waiting.extend(through(one.made_by))


def argument_of(value: Value, call: Call) -> Place | None:
    """The argument of a module call that a value is."""
    return next((at for at, taken in call.takes.items() if taken is value), None)


def rows_of(tensor: Tensor) -> int:
    """Length along the sequence of a tensor batch first."""
    return tensor.shape[1] if tensor.ndim > 1 else 1


def segments(names: list[str]) -> tuple[str, ...]:
    """Names without their immediate repetitions."""
    return tuple(name for at, name in enumerate(names) if not at or names[at - 1] != name)


def last_layer(raw: Call) -> Call | None:
    """The last layer with weights that makes a module's output."""
    if isinstance(raw.module, nn.Linear):
        return raw
    value = next(iter(raw.gives.values()))
    while True:
        layers = [
            call
            for call, _ in value.returned_by
            if call.lies_in(raw)
            and next(call.module.children(), None) is None
            and next(call.module.parameters(), None) is not None
        ]
        if layers and is_plain_norm(layers[-1].module):
            value = first_tensor(layers[-1])
        elif layers:
            return layers[-1]
        elif (
            value.made_by is not None
            and made_in(value, raw)
            and value.made_by.name in HANDED_ON | CUT
        ):
            value = value.made_by.takes[0]
        else:
            return None
