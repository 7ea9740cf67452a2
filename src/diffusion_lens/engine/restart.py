"""Starting an evaluation of the denoiser in its middle: what ran before returns what it did once.

One evaluation is recorded. Later ones, for any choice of its rows, put recorded outputs in the
place of every module that had finished when a chosen module began, by setting `forward` on the
*instance* and deleting it again. No forward is copied: the model's own code runs, from module to
module, and what is not a module (concatenated skips, reshapes) is computed anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lens.engine.handles import forward_is
from diffusion_lens.errors import EngineError

CONTAINERS = (nn.ModuleList, nn.ModuleDict)


@dataclass(eq=False)
class Replay:
    """One recorded evaluation that others can start in the middle of.

    Attributes:
        denoiser: The denoiser.
        restarts: Paths of the modules at which an evaluation may start.
    """

    denoiser: nn.Module
    restarts: frozenset[str]
    _outputs: dict[str, list[tuple[int, Any]]] = field(default_factory=dict)
    _began: dict[str, int] = field(default_factory=dict)
    _finished: int = 0
    _rows: int = 0
    _before: dict[str, frozenset[str]] = field(default_factory=dict)
    _mixed: set[str] = field(default_factory=set)
    """Modules whose outputs have no batch in front (tokens of all samples in a row): run anew."""

    def __post_init__(self) -> None:
        """Find out once what may be replayed for each restart."""
        self._before = {restart: self._replayable(restart) for restart in self.restarts}

    @contextlib.contextmanager
    def recording(self, rows: int) -> Iterator[Replay]:
        """Record the evaluation that runs while the context is open.

        Args:
            rows: Its batch size.
        """
        self._outputs, self._began, self._finished, self._rows = {}, {}, 0, rows
        self._mixed = set()
        with contextlib.ExitStack() as undo:
            for path in self.restarts:
                module = self.denoiser.get_submodule(path)
                undo.callback(module.register_forward_pre_hook(self._beginning(path)).remove)
            for path in self.restarts.union(*self._before.values()):
                module = self.denoiser.get_submodule(path)
                undo.callback(module.register_forward_hook(self._keeping(path)).remove)
            yield self

    def begins_before(self, path: str) -> int:
        """How much had finished when a module began: sorts restarts by when they come.

        Raises:
            EngineError: If the module did not run.
        """
        if path not in self._began:
            raise EngineError(f"{path} did not run, so no evaluation can start there")
        return self._began[path]

    def output(self, path: str, rows: Tensor) -> Any:
        """Recorded output of the first call of a module, for some rows."""
        return self._choose(self._outputs[path][0][1], rows, path)

    @contextlib.contextmanager
    def starting_at(self, path: str, rows: Tensor, *, output: Any = None) -> Iterator[None]:
        """Let evaluations start at a module while the context is open.

        Args:
            path: Path of the module.
            rows: For each row of the new batch the row of the recorded one.
            output: What the module itself shall return; None lets it run.
        """
        before = self.begins_before(path)
        done = {
            one: [found for number, found in self._outputs.get(one, ()) if number < before]
            for one in self._before[path]
            if one not in self._mixed
        }
        with contextlib.ExitStack() as undo:
            for one, calls in done.items():
                if calls:
                    module = self.denoiser.get_submodule(one)
                    stand_in = self._stand_in(module, calls, rows, one)
                    undo.enter_context(forward_is(module, stand_in))
            if output is not None:
                module = self.denoiser.get_submodule(path)
                undo.enter_context(forward_is(module, lambda *_args, **_kwargs: output))
            yield

    # -- inside -------------------------------------------------------------------------------

    def _replayable(self, restart: str) -> frozenset[str]:
        """The modules that are called by those which `restart` lies in, itself left out.

        Modules without weights are run anew: they cost nothing, and what they return need not have
        the batch in front (rotary embeddings of positions).
        """
        found: set[str] = set()
        inside = {restart[:end] for end in range(len(restart)) if restart[end] == "."} | {""}
        for path in inside:
            found.update(self._called_by(path))
        return frozenset(found - inside - {restart})

    def _called_by(self, path: str) -> Iterator[str]:
        for name, child in self.denoiser.get_submodule(path).named_children():
            inner = f"{path}.{name}" if path else name
            if isinstance(child, CONTAINERS):
                yield from self._called_by(inner)
            elif next(child.parameters(), None) is not None:
                yield inner

    def _beginning(self, path: str) -> Callable:
        def begin(_module: nn.Module, _args: Any) -> None:
            self._began.setdefault(path, self._finished)

        return begin

    def _keeping(self, path: str) -> Callable:
        def keep(_module: nn.Module, _args: Any, output: Any) -> None:
            self._outputs.setdefault(path, []).append((self._finished, output))
            if path not in self.restarts and not _has_rows(output, self._rows):
                self._mixed.add(path)
            self._finished += 1

        return keep

    def _stand_in(
        self, module: nn.Module, calls: Sequence[Any], rows: Tensor, path: str
    ) -> Callable:
        waiting = iter(calls)
        forward = module.forward

        def stand_in(*args: Any, **kwargs: Any) -> Any:
            found = next(waiting, None)
            if found is None:  # it is called again after the restart
                return forward(*args, **kwargs)
            return self._choose(found, rows, path)

        return stand_in

    def _choose(self, output: Any, rows: Tensor, path: str) -> Any:
        def choose(value: Tensor) -> Tensor:
            if value.shape[0] != self._rows:
                raise EngineError(
                    f"{path} returned {tuple(value.shape)} for a batch of {self._rows}, whose "
                    "rows cannot be told apart, so that no evaluation can start behind it"
                )
            return value.index_select(0, rows.to(value.device))

        return _mapped(output, choose)


@dataclass(eq=False)
class TrajectoryReplay:
    """What the denoiser returned at each step of a run, so that others can branch off from it.

    The pipeline's loop and its scheduler run as ever, from the first step; only the denoiser is
    not evaluated. So schedulers with a memory and those that draw noise are replayed exactly.

    Attributes:
        denoiser: The denoiser.
        step: Gives the step that is running.
    """

    denoiser: nn.Module
    step: Callable[[], int]
    _calls: list[tuple[int, Any]] = field(default_factory=list)

    @contextlib.contextmanager
    def recording(self) -> Iterator[TrajectoryReplay]:
        """Record the run that runs while the context is open."""
        self._calls = []

        def keep(_module: nn.Module, _args: Any, output: Any) -> None:
            self._calls.append((self.step(), output))

        handle = self.denoiser.register_forward_hook(keep)
        try:
            yield self
        finally:
            handle.remove()

    @contextlib.contextmanager
    def until(self, step: int, rows: Tensor, *, samples: int) -> Iterator[None]:
        """Let runs branch off at a step while the context is open.

        Args:
            step: The first step at which the denoiser runs.
            rows: For each sample of the new batch the sample of the recorded run.
            samples: How many samples that had.
        """
        waiting = iter([output for at, output in self._calls if at < step])
        forward = self.denoiser.forward

        def wanted(count: int) -> Tensor:
            return torch.cat([rows + branch * samples for branch in range(count // samples)])

        def choose(value: Tensor) -> Tensor:
            return value.index_select(0, wanted(value.shape[0]).to(value.device))

        def among(listed: list[Tensor]) -> list[Tensor]:
            return [listed[at] for at in wanted(len(listed)).tolist()]

        def stand_in(*args: Any, **kwargs: Any) -> Any:
            found = next(waiting, None)
            if found is None:
                return forward(*args, **kwargs)
            return _mapped(found, choose, among)

        with forward_is(self.denoiser, stand_in):
            yield


def _mapped(
    output: Any,
    change: Callable[[Tensor], Tensor],
    listed: Callable[[list[Tensor]], list[Tensor]] | None = None,
) -> Any:
    """A module's output with every tensor changed.

    Args:
        output: The output.
        change: What is done to a tensor.
        listed: What is done to a list of one tensor for each sample; None for its tensors alone.
    """
    if isinstance(output, Tensor):
        return change(output)
    if isinstance(output, dict):  # diffusers' outputs are dicts, too
        return type(output)(**{name: _mapped(one, change, listed) for name, one in output.items()})
    if isinstance(output, list) and listed is not None:
        return listed(output)
    if isinstance(output, tuple | list):
        return type(output)(_mapped(one, change, listed) for one in output)
    return output


def _has_rows(output: Any, rows: int) -> bool:
    """Whether every tensor of a module's output has the batch in front."""
    seen: list[bool] = []

    def see(value: Tensor) -> Tensor:
        seen.append(value.ndim > 0 and value.shape[0] == rows)
        return value

    _mapped(output, see)
    return all(seen)
