"""Reducers: what a cache keeps in place of every value, so that it does not grow with the run."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from diffusion_lens.border import public
from diffusion_lens.errors import RunError, closest
from diffusion_lens.hook_points.context import HookContext


@runtime_checkable
class Reducer(Protocol):
    """Takes one activation after the other and gives one result.

    One reducer serves one hook point in one branch; it sees the evaluations in order. A reducer
    that never keeps the tensor that it is given may say so with a class attribute `keeps = False`;
    patterns are then computed in the same memory at every step.
    """

    def update(self, value: Tensor, hook: HookContext) -> None:
        """Take the activation of one evaluation. It may be the model's own: do not change it."""
        ...

    def result(self) -> Tensor:
        """What was reduced so far."""
        ...


class RunningSum:
    """Sum over steps, in float32 for half-precision models.

    Args:
        over: Axes to average over in every activation before it is added, such as `"head"`. They
            are gone from the result.
    """

    keeps = False

    @public
    def __init__(self, *, over: str | Sequence[str] = ()) -> None:
        """Start from nothing."""
        self.over = (over,) if isinstance(over, str) else tuple(over)
        self.total: Tensor | None = None
        self.count = 0

    def update(self, value: Tensor, hook: HookContext) -> None:
        """Add one activation.

        Raises:
            RunError: If it lacks an axis to average over.
        """
        value = value.detach()
        wide = torch.promote_types(value.dtype, torch.float32)
        if self.over:
            value = value.mean([self._axis(name, hook) for name in self.over], dtype=wide)
        self.count += 1
        if self.total is None:
            mine = hook.owned or bool(self.over)
            self.total = value.to(wide) if mine or value.dtype != wide else value.clone()
        else:
            self.total.add_(value)

    def _axis(self, name: str, hook: HookContext) -> int:
        if name not in hook.axes:
            near = closest(name, hook.axes)
            hint = f" Closest: {near[0]!r}." if near else ""
            raise RunError(
                f"{self!r} at {hook.name}, whose axes are {hook.axes}: there is no axis {name!r}."
                f"{hint}"
            )
        return hook.axis(name)

    def __repr__(self) -> str:
        """The call that makes it."""
        return f"{type(self).__name__}({f'over={self.over}' if self.over else ''})"

    def result(self) -> Tensor:
        """The sum.

        Raises:
            RunError: If nothing was added.
        """
        if self.total is None:
            raise RunError("nothing was reduced: the hook point never fired")
        return self.total


class RunningMean(RunningSum):
    """Mean over steps, in float32 for half-precision models."""

    def result(self) -> Tensor:
        """The mean."""
        return super().result() / self.count


class Last:
    """The value of the last step."""

    keeps = False

    def __init__(self) -> None:
        """Start from nothing."""
        self.value: Tensor | None = None

    def update(self, value: Tensor, hook: HookContext) -> None:
        """Take the place of the value before, in the same memory."""
        value = value.detach()
        if self.value is None or self.value.shape != value.shape:
            self.value = value if hook.owned else value.clone()
        else:
            self.value.copy_(value)

    def result(self) -> Tensor:
        """The last value.

        Raises:
            RunError: If there was none.
        """
        if self.value is None:
            raise RunError("nothing was reduced: the hook point never fired")
        return self.value


NAMED: dict[str, Callable[[], Reducer]] = {"mean": RunningMean, "sum": RunningSum, "last": Last}


@public
def reducer_factory(reduce: str | Reducer | Callable[[], Reducer]) -> Callable[[], Reducer]:
    """A maker of fresh reducers from a name (`mean`, `sum`, `last`), a class, or a reducer.

    A reducer such as `RunningMean(over="head")` is copied for each hook point and branch, and sees
    nothing itself.

    Raises:
        RunError: If the name is unknown, the maker makes something else, or a reducer has seen
            values already.
    """
    if isinstance(reduce, Reducer) and not isinstance(reduce, type):
        used = getattr(reduce, "total", None), getattr(reduce, "value", None)
        if isinstance(reduce, RunningSum | Last) and used != (None, None):
            raise RunError(f"reduce={reduce!r} has reduced values already; give a new one")
        return functools.partial(copy.deepcopy, copy.deepcopy(reduce))
    if isinstance(reduce, str):
        if reduce not in NAMED:
            raise RunError(
                f"reduce={reduce!r} is unknown; give one of {list(NAMED)}, or a class with "
                "update(value, hook) and result()"
            )
        return NAMED[reduce]
    if not callable(reduce) or not isinstance(reduce(), Reducer):
        raise RunError(
            f"reduce={reduce!r} makes no reducer; give one of {list(NAMED)}, or a class with "
            "update(value, hook) and result()"
        )
    return reduce
