"""Values at the border of a module: its arguments and its outputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from diffusion_lens.errors import EngineError

Transform = Callable[[Tensor], Tensor]


def on_argument(
    module: nn.Module, path: Sequence[str | int], transform: Transform
) -> RemovableHandle:
    """Pass an argument of a module through `transform` before the module runs.

    Args:
        module: The module.
        path: The argument's name or position, then keys or indices into containers.
        transform: From the value to the value to go on with; the same object means no change.
    """
    parameters = list(inspect.signature(type(module).forward).parameters)[1:]
    name, *rest = path

    def before(_module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        position = name if isinstance(name, int) else _position(parameters, name)
        if isinstance(name, str) and name in kwargs:
            given = kwargs[name]
            after = _inside(given, rest, transform)
            return None if after is given else (args, {**kwargs, name: after})
        if position is not None and position < len(args):
            given = args[position]
            after = _inside(given, rest, transform)
            return None if after is given else (_changed(args, position, after), kwargs)
        if isinstance(name, int) and kwargs:
            key = parameters[name] if parameters[name] in kwargs else list(kwargs)[name - len(args)]
            after = _inside(kwargs[key], rest, transform)
            return None if after is kwargs[key] else (args, {**kwargs, key: after})
        return None

    return module.register_forward_pre_hook(before, with_kwargs=True)


def on_output(module: nn.Module, index: int | None, transform: Transform) -> RemovableHandle:
    """Pass part of a module's output through `transform`.

    Args:
        module: The module.
        index: Place in an output of several values; None (or 0 with a single tensor) for the
            only one.
        transform: From the value to the value to go on with; the same object means no change.
    """

    def after(_module: nn.Module, _args: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            changed = transform(output)
            return None if changed is output else changed
        if is_dataclass(output):
            structured: Any = output
            changed = _inside(structured.sample, (), transform)
            same = changed is structured.sample
            return None if same else replace(structured, sample=changed)
        place = index or 0
        given = output[place]
        changed = _inside(given, (), transform)
        return None if changed is given else _changed(output, place, changed)

    return module.register_forward_hook(after)


def _position(parameters: Sequence[str], name: str) -> int | None:
    return parameters.index(name) if name in parameters else None


def _inside(container: Any, path: Sequence[str | int], transform: Transform) -> Any:
    if container is None:
        return None
    if not path:
        if isinstance(container, tuple) and container:  # the text with image prompts beside it
            after = _inside(container[0], path, transform)
            return container if after is container[0] else (after, *container[1:])
        if isinstance(container, list):  # one tensor for each sample
            return _sample_by_sample(container, transform)
        return transform(container) if isinstance(container, Tensor) else container
    key, *rest = path
    if isinstance(container, dict) and key not in container:
        return container
    given = container[key]
    after = _inside(given, rest, transform)
    if after is given:
        return container
    if isinstance(container, dict):
        return {**container, key: after}
    assert isinstance(key, int)
    return _changed(container, key, after)


def _sample_by_sample(samples: list[Tensor], transform: Transform) -> list[Tensor]:
    """Show samples that come one by one as one batch.

    Raises:
        EngineError: If they differ in size.
    """
    sizes = dict.fromkeys(tuple(sample.shape) for sample in samples)
    if len(sizes) > 1:
        raise EngineError(
            f"samples of the sizes {list(sizes)} do not make one tensor; run prompts of different "
            "length one at a time, and without guidance or with a negative prompt as long"
        )
    together = torch.stack(samples)
    after = transform(together)
    return samples if after is together else list(after.unbind())


def _changed(values: Sequence, place: int, value: object) -> tuple:
    return (*values[:place], value, *values[place + 1 :])
