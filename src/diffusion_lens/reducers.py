"""Reducers: what a cache keeps in place of every value, so that it does not grow with the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from diffusion_lens.border import public
from diffusion_lens.errors import RunError
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
        over: Axes to average over in every activation before it is added, such as `"head"`.
    """

    keeps = False

    @public
    def __init__(self, *, over: str | Sequence[str] = ()) -> None:
        """Start from nothing."""
        self.over = (over,) if isinstance(over, str) else tuple(over)
        self.total: Tensor | None = None
        self.count = 0

    def update(self, value: Tensor, hook: HookContext) -> None:
        """Add one activation."""
        value = value.detach()
        if self.over:
            value = value.mean([hook.axis(name) for name in self.over])
        self.count += 1
        if self.total is None:
            wide = torch.promote_types(value.dtype, torch.float32)
            mine = hook.owned or bool(self.over)
            self.total = value.to(wide) if mine or value.dtype != wide else value.clone()
        else:
            self.total.add_(value)

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
def reducer_factory(reduce: str | Callable[[], Reducer]) -> Callable[[], Reducer]:
    """A maker of fresh reducers from a name (`mean`, `sum`, `last`) or a class.

    Raises:
        RunError: If the name is unknown, or the maker makes something else.
    """
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
