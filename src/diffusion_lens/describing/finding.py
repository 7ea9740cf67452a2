"""Which modules of a denoiser are transformer blocks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from diffusion_lens.describing.origins import MULTIPLIED, PRODUCT
from diffusion_lens.describing.tracing import copied, tensors

LISTS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


def find_block_paths(denoiser: nn.Module, inputs: Mapping[str, Any]) -> list[str]:
    """Paths of the modules that hold attention and stand in a list, in the order of their calls.

    Args:
        denoiser: The model, in evaluation mode.
        inputs: The keyword arguments of one call.
    """
    attending = _Attending(denoiser)
    with attending.on(), torch.no_grad():
        denoiser(**copied(dict(inputs)))
    lists = {path for path, one in denoiser.named_modules() if isinstance(one, LISTS)}
    blocks = [_block_of(path, lists) for path in attending.found]
    return [attending.innermost(path) for path in dict.fromkeys(blocks) if path]


def _block_of(path: str, lists: set[str]) -> str:
    """The closest module above an attention that stands in a list; empty where none does."""
    above = path.rpartition(".")[0]
    while above and above.rpartition(".")[0] not in lists:
        above = above.rpartition(".")[0]
    return above


class _Attending(TorchFunctionMode):
    """Notes which modules attend, in the order in which they do, and holds no tensor.

    Attributes:
        found: Their paths.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.parameters = {id(one) for one in denoiser.parameters()}
        self.found: dict[str, None] = {}
        self.running: list[str] = []
        self.called: dict[str, list[tuple[str, list[int]]]] = {}
        self.gave: dict[str, list[int]] = {}

    def __torch_function__(
        self, function: Callable, _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run a torch call and note an attention product."""
        name = getattr(function, "__name__", "").strip("_")
        if self.running and (name == PRODUCT or (name in MULTIPLIED and self._is_linear(args))):
            self.found[self.running[-1]] = None
        return function(*args, **(kwargs or {}))

    def _is_linear(self, args: Any) -> bool:
        """Whether two matrices that an attention module made are multiplied, no weight."""
        both = [one for one in args if isinstance(one, Tensor)][:2]
        made = all(one.ndim >= 3 and id(one) not in self.parameters for one in both)
        module = self.denoiser.get_submodule(self.running[-1])
        return len(both) == 2 and made and hasattr(module, "to_q")

    def on(self) -> contextlib.ExitStack:
        """Until the stack is closed."""
        stack = contextlib.ExitStack()
        for path, module in self.denoiser.named_modules():
            enter = module.register_forward_pre_hook(lambda _m, _a, at=path: self._enter(at))
            leave = module.register_forward_hook(lambda _m, _a, out: self._leave(out))
            stack.callback(enter.remove)
            stack.callback(leave.remove)
        stack.enter_context(self)
        return stack

    def _enter(self, path: str) -> None:
        self.running.append(path)
        self.called[path] = []

    def _leave(self, output: Any) -> None:
        path = self.running.pop()
        gave = self.gave[path] = [id(one) for _, one in tensors(output)]
        if self.running:
            self.called[self.running[-1]].append((path, gave))

    def innermost(self, path: str) -> str:
        """The module that does what a wrapper around it returns."""
        inner = self.called[path]
        if len(inner) == 1 and inner[0][1] == self.gave[path]:
            return self.innermost(inner[0][0])
        return path
