"""Listening to functions of torch inside one call of one module, and stopping for certain.

torch takes a function mode off its stack while the mode's own handler runs, and puts it back when
the handler is done; after a Ctrl-C it calls no forward hook. So a mode is first made deaf and then
taken off, now or as soon as it can be.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Collection
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from diffusion_lens.engine.firing import RUNNING
from diffusion_lens.engine.product import Product
from diffusion_lens.engine.softmax_product import STEPS

TORCH_NAMES = {
    "attn_mask": "mask",
    "dropout_p": "dropout",
    "is_causal": "causal",
    "enable_gqa": "shared",
}
"""Arguments of `scaled_dot_product_attention` that a `Product` calls otherwise."""

StandIn = Callable[[Any, tuple, dict[str, Any]], Any]


class _Strays(threading.local):
    """Deaf modes of one thread that are still on its stack."""

    def __init__(self) -> None:
        self.modes: list[CallMode] = []


_STRAYS = _Strays()


class CallMode(TorchFunctionMode):
    """Stands in for some functions of torch.

    It listens to the call of the module that was running when it was made, and to nothing else:
    not to what a hook runs inside that call, nor to what runs when the call was broken off.
    """

    def __init__(self, functions: Collection[Any], stand_in: StandIn) -> None:
        """Listen to the module whose forward pre-hook is running.

        Args:
            functions: What to stand in for.
            stand_in: Called with one of them and its arguments, in its place.
        """
        super().__init__()
        self.functions = functions
        self.stand_in = stand_in
        self._depth = RUNNING.depth
        self._frame: FrameType | None = _module_call()
        self._open = True
        self._handling = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Intercept the functions, pass everything else on."""
        kwargs = kwargs or {}
        if func not in self.functions or not self._listens():
            return func(*args, **kwargs)
        self._handling += 1
        try:
            return self.stand_in(func, args, kwargs)
        finally:
            self._handling -= 1

    def _listens(self) -> bool:
        if not self._open or RUNNING.depth != self._depth:
            return False
        if self._frame is None:
            return True
        # The module's own call must be above: a generator or a broken-off call may outlive it.
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and frame is not self._frame:
            frame = frame.f_back
        return frame is not None

    def start(self) -> None:
        """Begin to listen on this thread."""
        sweep()
        self.__enter__()

    def stop(self, module: nn.Module) -> None:
        """Go deaf, and leave the stack: now, or when the handler that is running is done.

        Args:
            module: The module whose call is being listened to.
        """
        self._open, self._frame = False, None
        if _taken_off(self):
            return
        _STRAYS.modes.append(self)
        if self._handling:
            handle = module.register_forward_hook(lambda *_: ended(), always_call=True)

            def ended() -> None:  # the call itself may have ended, or one inside it
                sweep()
                if self not in _STRAYS.modes:
                    handle.remove()


class ProductMode(CallMode):
    """Sends calls of the fused product to `attend`, parts of an explicit one to `explicit`.

    Attributes:
        calls: How many products were seen.
    """

    def __init__(
        self,
        attend: Callable[[int, Product], Tensor],
        explicit: StandIn,
        steps: frozenset[Any] = STEPS,
    ) -> None:
        """Listen to the module whose forward pre-hook is running.

        Args:
            attend: Gives the output of a fused product, by its place among the call's.
            explicit: Stands in for one of the `steps`.
            steps: The functions that `explicit` is asked about.
        """
        super().__init__(steps | {F.scaled_dot_product_attention}, self._product)
        self.attend = attend
        self.explicit = explicit
        self.calls = 0

    def _product(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        if func is not F.scaled_dot_product_attention:
            return self.explicit(func, args, kwargs)
        given = {TORCH_NAMES.get(name, name): value for name, value in kwargs.items()}
        self.calls += 1
        return self.attend(self.calls - 1, Product(*args, **given))


def sweep() -> None:
    """Take deaf modes off this thread's stack."""
    _STRAYS.modes = [mode for mode in _STRAYS.modes if not _taken_off(mode)]


def _taken_off(mode: CallMode) -> bool:
    """Take a mode off this thread's stack, wherever it lies; False where it is not on it."""
    if not any(one is mode for one in _get_current_function_mode_stack()):
        return False
    above = []
    # Modes are left in the order of hooks, not that of a stack, which torch's `__exit__` assumes.
    while (top := torch._C._pop_torch_function_stack()) is not mode:
        above.append(top)
    for one in reversed(above):
        torch._C._push_on_torch_function_stack(one)
    return True


def _module_call() -> FrameType | None:
    """The frame in which torch calls the module whose pre-hook is running."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename != nn.modules.module.__file__:
        frame = frame.f_back
    return frame
