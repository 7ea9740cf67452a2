"""What takes a hook off again, hooks that are deaf at times, and forwards that are stood in for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle


class Removal:
    """Something with `remove()`, as torch's handles have it."""

    def __init__(self, undo: Callable[[], None]) -> None:
        """Call `undo` on removal."""
        self.remove = undo


Handle = RemovableHandle | Removal


def gated(handle: Handle, listens: Callable[[], bool]) -> Handle:
    """Make an attached torch hook deaf while `listens()` is false; returns its handle.

    Modules that run twice in one evaluation, for the image and again for concept tokens, carry the
    hooks of both passes.
    """
    hooks = handle.hooks_dict_ref() if isinstance(handle, RemovableHandle) else None
    if hooks is None:
        return handle
    assert isinstance(handle, RemovableHandle)
    hook = hooks[handle.id]

    def listening(*args: Any) -> Any:
        return hook(*args) if listens() else None

    hooks[handle.id] = listening
    return handle


def deaf_on_copies(handle: Handle) -> Handle:
    """Make an attached torch hook deaf on deep copies of its module, which take its hooks along."""
    hooks = handle.hooks_dict_ref() if isinstance(handle, RemovableHandle) else None
    if hooks is None:
        return handle
    assert isinstance(handle, RemovableHandle)
    hook = hooks[handle.id]

    # A function, since a deep copy of a bound method would copy the engine behind it.
    def at_home(module: nn.Module, *args: Any) -> Any:
        mine = module._forward_pre_hooks is hooks or module._forward_hooks is hooks
        return hook(module, *args) if mine else None

    hooks[handle.id] = at_home
    return handle


@contextlib.contextmanager
def forward_is(module: nn.Module, forward: Callable) -> Iterator[None]:
    """Put a function in the place of one module's forward while the context is open."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:  # offloading keeps its own there
            module.forward = before
