"""The router of a mixture of experts: its logits, and whom it chose.

Where a module works them out by itself, the functions that it calls for that are listened to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lens.engine.product_mode import CallMode
from diffusion_lens.engine.projection import Fire

CHOICES = frozenset({torch.topk, Tensor.topk})
LOGITS = frozenset({F.linear})


class RouterHooks:
    """The hooks on one value that a router works out by itself."""

    def __init__(self, which: str, batch: Callable[[], int], run: Fire) -> None:
        """Read `logits`, which the hooks may change, or the `choice`, which follows from them."""
        self.functions = LOGITS if which == "logits" else CHOICES
        self.run = on_samples(batch, run)
        self._modes: list[CallMode] = []

    def enter(self, _module: nn.Module, _args: Any) -> None:
        """Forward pre-hook: start to listen."""
        mode = CallMode(self.functions, self._made)
        self._modes.append(mode)
        mode.start()

    def leave(self, module: nn.Module, _args: Any, _output: Any) -> None:
        """Forward hook, called after an error too: stop listening."""
        if self._modes:
            self._modes.pop().stop(module)

    def _made(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        made = func(*args, **kwargs)
        if func in LOGITS:
            return self.run(made)
        self.run(made[1])
        return made


def on_samples(batch: Callable[[], int], run: Fire) -> Fire:
    """Hooks with axes batch and pos on a value in which these two may be one."""

    def on_tokens(value: Tensor) -> Tensor:
        if value.ndim > 2:
            return run(value)
        shown = value.unflatten(0, (batch(), -1))
        after = run(shown)
        return value if after is shown else after.flatten(0, 1)

    return on_tokens
