"""A hook function with where it goes, and what is known of it afterwards."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffusion_lens.border import public
from diffusion_lens.errors import RunError
from diffusion_lens.hook_points.context import HookContext
from diffusion_lens.hook_points.site import Site

HookFunction = Callable[[Tensor, HookContext], Tensor | None]


@dataclass
class Fired:
    """How often one hook fired at one point, and what it changed.

    Attributes:
        shown: How often it was shown a value, or waited for its gradient.
        steps: At which steps.
        heads: The heads that it saw, as (block, head) pairs.
        calls: How often it was called.
        edits: How often it changed what it saw.
        change: Sum of the mean absolute changes.
        absent: Why the run had no such value, where it is known.
    """

    shown: int = 0
    steps: set[int] = field(default_factory=set)
    heads: set[tuple[int | None, int]] = field(default_factory=set)
    calls: int = 0
    edits: int = 0
    change: Tensor | None = None
    absent: str = ""

    def saw(self, context: HookContext) -> None:
        """Note that the hook is shown a value."""
        self.shown += 1
        if context.step not in self.steps:
            self.steps.add(context.step)
            self.heads.update((context.block, head) for head in context.heads or ())

    def edited(self, before: Tensor, after: Tensor) -> None:
        """Count an edit and add up its mean absolute change, on the device."""
        difference = (after.detach() - before.detach()).abs().mean(dtype=torch.float32)
        self.change = difference if self.change is None else self.change + difference
        self.edits += 1


@dataclass(eq=False)
class Registration:
    """A hook function and where it goes.

    Attributes:
        site: Where.
        fn: The function.
        backward: Whether it gets gradients instead of activations.
        read_only: Whether it promises to leave the activation alone.
        permanent: Whether `reset_hooks` leaves it in place.
        fired: What happened, by hook-point name.
        memory: What the engine uses again from step to step, for readers that keep nothing.
        thread: The thread whose context keeps it on; None where it stays on until taken off.
        closed: Whether that context was left; it does not fire any more.
        dropped: Whether something else took it off before.
    """

    site: Site
    fn: HookFunction
    backward: bool = False
    read_only: bool = False
    permanent: bool = False
    fired: dict[str, Fired] = field(default_factory=lambda: defaultdict(Fired))
    memory: Any = None
    thread: int | None = None
    closed: bool = False
    dropped: bool = False

    def __repr__(self) -> str:
        """Site and function, as a report shows them."""
        return f"{self.site!r}: {describe(self.fn)}"


def describe(fn: object) -> str:
    """A short name of a hook function: its repr where it has a readable one."""
    name = getattr(fn, "__qualname__", None)
    return repr(fn) if name is None else name.rsplit("<locals>.", 1)[-1]


@public
def read_only(fn: HookFunction) -> HookFunction:
    """Promise that a hook function never edits, so that it is shown the value without a copy.

    Changing the value all the same is an error.

    Args:
        fn: Any callable. One that takes no attributes (a bound method) comes back wrapped.
    """
    if not callable(fn):
        raise RunError(f"read_only takes a hook function fn(activation, hook), got {fn!r}")
    try:
        fn.read_only = True  # type: ignore[attr-defined]
    except AttributeError:  # of methods, of builtins, of classes with slots or frozen ones
        return ReadOnly(fn)
    return fn


@dataclass(frozen=True)
class ReadOnly:
    """A hook function that cannot be marked itself, with the mark of `read_only`."""

    fn: HookFunction
    read_only = True

    @property
    def keeps(self) -> bool:
        """Whether tensors are kept as they come."""
        return getattr(self.fn, "keeps", True)

    def __call__(self, activation: Tensor, hook: HookContext) -> Tensor | None:
        """Call it."""
        return self.fn(activation, hook)

    def __repr__(self) -> str:
        """As a report shows it."""
        return describe(self.fn)
