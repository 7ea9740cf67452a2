"""What concepts pass on their way to the first block: the text's own projections and refiners."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

from diffusion_lens.architectures.spec import ConceptEntry
from diffusion_lens.concept_streams.positions import placed_again
from diffusion_lens.engine.handles import Handle
from diffusion_lens.errors import EngineError

BY_NAME = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Entrance:
    """The modules that the text passes, run once more for the concepts.

    Attributes:
        modules: These modules in order.
        kept: The arguments that each was called with for the text, in the evaluation that runs.
    """

    def __init__(self, denoiser: nn.Module, entry: ConceptEntry) -> None:
        """Look the modules up; nothing is attached yet."""
        self.entry = entry
        self.modules = entry_modules(denoiser, entry)
        self.kept: dict[nn.Module, dict[str, Any]] = {}

    def attach(self) -> Iterator[Handle]:
        """Follow the main pass."""
        for module in self.modules:
            yield module.register_forward_pre_hook(partial(self._keep), with_kwargs=True)

    def clear(self) -> None:
        """Forget the last evaluation."""
        self.kept = {}

    def run(self, rows: Tensor, position: int) -> Tensor:
        """Concepts at the width of the residual stream.

        Args:
            rows: Their embeddings, axes batch, concept and what else the text's have.
            position: The text token whose place they take.

        Raises:
            EngineError: If one of the modules did not run for the text.
        """
        for module in self.modules:
            if module not in self.kept:
                raise EngineError(
                    f"{type(module).__name__}, through which concepts enter with the text, did not "
                    "run in this evaluation: this way of calling the denoiser is not described"
                )
            given = self.kept.pop(module)
            name = next(iter(given))
            counts = {"txt": (given[name].shape[1], rows.shape[1])}
            changed = {mask: None for mask in self.entry.masks if mask in given}
            changed |= placed_again(given, self.entry.positions, counts, position)
            rows = module.forward(**{**given, **changed, name: rows})
        return rows

    def _keep(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.kept[module] = bound(module, args, kwargs)


def entry_modules(denoiser: nn.Module, entry: ConceptEntry) -> tuple[nn.Module, ...]:
    """The modules that an entry names, those of lists one by one."""
    found: list[nn.Module] = []
    for path in entry.through:
        module = denoiser.get_submodule(path)
        found += list(module) if isinstance(module, nn.ModuleList) else [module]
    return tuple(found)


def bound(module: nn.Module, args: tuple, kwargs: dict) -> dict[str, Any]:
    """The arguments of a call by name; what a signature takes beyond its names is left out."""
    parameters = inspect.signature(type(module).forward).parameters.values()
    names = [one.name for one in parameters if one.kind in BY_NAME][1:]
    return dict(zip(names, args, strict=False)) | kwargs
