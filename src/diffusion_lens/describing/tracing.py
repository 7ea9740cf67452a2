"""One evaluation of a denoiser, written down: what every torch call and module call took and gave.

A tensor that is written in place is a new value from then on, so that each value has one origin.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Place = tuple[str | int, ...]
"""Where a tensor lies in nested containers."""


@dataclass(eq=False)
class Value:
    """What a tensor holds between two writes to it.

    Attributes:
        tensor: The tensor; by the end of the evaluation it may have been written to again.
        made_by: The torch call that made it; None for parameters and what came from outside.
        number: Its place in the order in which values were made.
        parameter: The parameter or buffer that it is, by path; empty for any other.
        returned_by: The module calls that gave it, the innermost first, and where in their output.
        taken_by: The module calls that took it, in order, and where among their arguments.
        cast_in: The module calls in which a cast to another precision gave the tensor itself back.
        used_by: The torch calls that took it.
    """

    tensor: Tensor
    made_by: Op | None
    number: int
    parameter: str = ""
    returned_by: list[tuple[Call, Place]] = field(default_factory=list)
    taken_by: list[tuple[Call, Place]] = field(default_factory=list)
    cast_in: list[Call | None] = field(default_factory=list)
    used_by: list[Op] = field(default_factory=list)

    @property
    def shape(self) -> torch.Size:
        """Of its tensor."""
        return self.tensor.shape


@dataclass(eq=False)
class Op:
    """A torch call.

    Attributes:
        name: The function's, without underscores.
        takes: The values among its arguments, in order.
        args: The arguments, tensors as they are.
        kwargs: Those by name.
        scope: The module call in which it ran; None outside all.
        gives: The values that it made.
    """

    name: str
    takes: tuple[Value, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    scope: Call | None
    gives: list[Value] = field(default_factory=list)


@dataclass(eq=False)
class Call:
    """A module call.

    Attributes:
        path: The module's.
        module: The module.
        takes: For each argument's place its value.
        inside: The call in which it ran; None for the denoiser itself.
        given: The arguments as they were, copied, where the trace was asked for it.
        gives: For each place in the output its value.
        first: Number of values there were when it began.
        last: Number of values there were when it ended.
    """

    path: str
    module: nn.Module
    takes: dict[Place, Value]
    inside: Call | None
    first: int
    given: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    gives: dict[Place, Value] = field(default_factory=dict)
    output: Any = None
    last: int = -1

    def lies_in(self, other: Call) -> bool:
        """Whether it ran in another call."""
        return self.inside is not None and (self.inside is other or self.inside.lies_in(other))


@dataclass(eq=False)
class Trace:
    """What one evaluation consisted of.

    Attributes:
        denoiser: The model.
        inputs: The keyword arguments of the evaluation.
        ops: Its torch calls in order.
        calls: Its module calls in the order in which they began.
        prediction: The output's first tensor.
    """

    denoiser: nn.Module
    inputs: Mapping[str, Any]
    ops: list[Op]
    calls: list[Call]
    prediction: Tensor

    def calls_of(self, path: str) -> list[Call]:
        """The calls of one module, in order."""
        return [call for call in self.calls if call.path == path]

    def within(self, call: Call) -> list[Op]:
        """The torch calls that ran in a module call, itself and in what it called."""
        return [op for op in self.ops if op.scope is call or (op.scope and op.scope.lies_in(call))]


def trace(
    denoiser: nn.Module,
    inputs: Mapping[str, Any],
    *,
    kept: Callable[[str], bool],
    passed: Callable[[str], bool] = lambda _path: False,
) -> Trace:
    """Evaluate a denoiser once and write it down.

    Args:
        denoiser: The model. Every tensor that is written down is held, so give it a short input.
        inputs: The keyword arguments.
        kept: Whether a copy of what the module at a path takes and gives is kept.
        passed: Whether what runs inside the module at a path is not written down.
    """
    writing = _Writing(denoiser, kept, passed)
    handles = [
        handle
        for path, module in denoiser.named_modules()
        for handle in (
            module.register_forward_pre_hook(writing.entering(path), with_kwargs=True),
            module.register_forward_hook(writing.leaving, with_kwargs=True),
        )
    ]
    try:
        with torch.no_grad(), writing:
            output = denoiser(**copied(dict(inputs)))
    finally:
        for handle in handles:
            handle.remove()
    prediction = next(tensor for _, tensor in tensors(output))
    return Trace(denoiser, inputs, writing.ops, writing.calls, prediction)


def tensors(value: Any, place: Place = ()) -> Iterator[tuple[Place, Tensor]]:
    """All tensors in nested containers, with their places."""
    if isinstance(value, Tensor):
        yield place, value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for one in dataclasses.fields(value):
            yield from tensors(getattr(value, one.name), (*place, one.name))
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from tensors(inner, (*place, key))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from tensors(inner, (*place, index))


def copied(value: Any) -> Any:
    """The same containers with tensors of their own."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: copied(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return _like(value, [copied(inner) for inner in value])
    return value


def replaced(value: Any, place: Place, new: Any) -> Any:
    """The same containers with one place changed."""
    if not place:
        return new
    first, rest = place[0], place[1:]
    if isinstance(value, dict):
        return {**value, first: replaced(value[first], rest, new)}
    if isinstance(value, list | tuple):
        items = [replaced(one, rest, new) if at == first else one for at, one in enumerate(value)]
        return _like(value, items)
    return dataclasses.replace(
        value, **{str(first): replaced(getattr(value, str(first)), rest, new)}
    )


def _like(value: Any, items: list[Any]) -> Any:
    """A list or tuple of the same kind with other items."""
    return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)


def bound(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a module call by name."""
    names = list(inspect.signature(type(module).forward).parameters.values())[1:]
    found: dict[str, Any] = {}
    for at, value in enumerate(args):
        parameter = names[min(at, len(names) - 1)]
        several = parameter.kind is parameter.VAR_POSITIONAL
        found[f"{parameter.name}{at}" if several else parameter.name] = value
    return found | dict(kwargs)


class _Writing(TorchFunctionMode):
    """Writes down what runs while it is on."""

    def __init__(
        self,
        denoiser: nn.Module,
        kept: Callable[[str], bool],
        passed: Callable[[str], bool],
    ) -> None:
        super().__init__()
        self.passed = passed
        self.passing: Call | None = None
        named = [*denoiser.named_parameters(), *denoiser.named_buffers()]
        self.parameters = {id(tensor): path for path, tensor in named}
        self.kept = kept
        self.ops: list[Op] = []
        self.calls: list[Call] = []
        self.running: list[Call] = []
        self.count = 0
        self.now: dict[int, Value] = {}
        self.silent = False

    def __torch_function__(
        self, function: Callable, _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run a torch call and write it down."""
        kwargs = kwargs or {}
        if self.silent or self.passing:
            return function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        takes = tuple(self.value(one) for _, one in (*tensors(args), *tensors(kwargs)))
        output = function(*args, **kwargs)
        in_place = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
        made = [args[0]] if in_place else [one for _, one in tensors(output)]
        if not made or name == "__get__":
            return output
        scope = self.running[-1] if self.running else None
        op = Op(name.strip("_"), takes, args, kwargs, scope)
        known = {id(value.tensor): value for value in takes}
        for tensor in made:
            before = known.get(id(tensor))
            if before is not None and not in_place:
                before.cast_in.append(scope)
            else:
                op.gives.append(self.value(tensor, op))
        if op.gives:
            self.ops.append(op)
            for value in takes:
                value.used_by.append(op)
        return output

    def value(self, tensor: Tensor, op: Op | None = None) -> Value:
        """The value that a tensor has now, a new one where a call has just written it."""
        found = self.now.get(id(tensor))
        if found is None or op is not None:
            self.count += 1
            path = "" if op else self.parameters.get(id(tensor), "")
            found = self.now[id(tensor)] = Value(tensor, op, self.count, path)
        return found

    def entering(self, path: str) -> Callable:
        """The forward pre-hook of the module at a path."""

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.passing:
                return
            takes = {at: self.value(one) for at, one in tensors(bound(module, args, kwargs))}
            inside = self.running[-1] if self.running else None
            call = Call(path, module, takes, inside, self.count)
            if self.kept(path):
                self.silent = True
                call.given = (copied(args), copied(kwargs))
                self.silent = False
            for at, value in takes.items():
                value.taken_by.append((call, at))
            self.calls.append(call)
            self.running.append(call)
            self.passing = call if self.passed(path) else None

        return enter

    def leaving(self, module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        """A forward hook of every module."""
        if self.passing and self.passing.module is not module:
            return
        self.passing = None
        call = self.running.pop()
        call.last = self.count
        if call.given is not None:
            self.silent = True
            call.output = copied(output)
            self.silent = False
        call.gives = {at: self.value(one) for at, one in tensors(output)}
        for at, value in call.gives.items():
            value.returned_by.append((call, at))
