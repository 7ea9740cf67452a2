"""Which blocks run alike: the same torch calls on the same things, in the same order.

Blocks that consist of the same modules may still run otherwise, each by its number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from diffusion_lens.describing.tracing import bound, copied, tensors


def alike(
    denoiser: nn.Module, inputs: Mapping[str, Any], paths: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """For each block the first and the last of its list that consist of the same and run alike.

    Args:
        denoiser: The model, in evaluation mode.
        inputs: The keyword arguments of one call; the tensors of one block at a time are held.
        paths: The blocks.
    """
    running = _Running()
    with running.on(denoiser, paths), torch.no_grad():
        denoiser(**copied(dict(inputs)))
    kinds: dict[object, list[str]] = {}
    for path in paths:
        module = denoiser.get_submodule(path)
        parts = tuple((name, type(one)) for name, one in module.named_modules())
        run = tuple(running.found.get(path, ()))
        kinds.setdefault((path.rpartition(".")[0], parts, run), []).append(path)
    ends = {path: (ones[0], ones[-1]) for ones in kinds.values() for path in ones}
    return {path: tuple(dict.fromkeys(ends[path])) for path in paths}


class _Running(TorchFunctionMode):
    """Notes what runs in blocks, with tensors by the order in which a block first has them.

    Attributes:
        found: For each block its torch calls, between what it was given and what it gave.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[object]] = {}
        self.block = ""
        self.module: nn.Module | None = None
        self.numbers: dict[int, object] = {}
        self.held: list[Tensor] = []

    @contextlib.contextmanager
    def on(self, denoiser: nn.Module, paths: Sequence[str]) -> Any:
        """For a while."""
        with contextlib.ExitStack() as stack:
            for path in paths:
                block = denoiser.get_submodule(path)
                for handle in (
                    block.register_forward_pre_hook(self._enter(path), with_kwargs=True),
                    block.register_forward_hook(self._leave),
                ):
                    stack.callback(handle.remove)
            stack.enter_context(self)
            yield

    def __torch_function__(
        self, function: Callable, _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run a torch call and note it."""
        kwargs = kwargs or {}
        output = function(*args, **kwargs)
        if self.block and any(tensors(output)):
            name = getattr(function, "__name__", "")
            said = (name, self._told(args), self._told(kwargs), self._told(output))
            self.found[self.block].append(said)
        return output

    def _enter(self, path: str) -> Any:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            if self.block:
                return  # a block inside a block is part of it
            self.numbers = {
                id(one): name for name, one in (*module.named_parameters(), *module.named_buffers())
            }
            self.block, self.module = path, module
            given = self._told(bound(module, args, kwargs))
            self.found.setdefault(path, []).append(("given", given))

        return enter

    def _leave(self, module: nn.Module, _args: Any, output: Any) -> None:
        if module is self.module:
            self.found[self.block].append(("gives", self._told(output)))
            self.block, self.module, self.held = "", None, []

    def _told(self, value: Any) -> object:
        """An argument, in which tensors are numbers."""
        if isinstance(value, Tensor):
            self.held.append(value)  # else another tensor could take its place in memory
            return self.numbers.setdefault(id(value), len(self.numbers)), tuple(value.shape)
        if isinstance(value, Mapping):
            return tuple((name, self._told(one)) for name, one in value.items())
        if isinstance(value, list | tuple):
            return tuple(map(self._told, value))
        inner = tuple((at, self._told(one)) for at, one in tensors(value))
        plain = value is None or isinstance(value, int | float | str | slice | torch.dtype)
        return repr(value) if plain else (type(value).__name__, inner)
