"""Reference injection: activations of a source run in place of a target run's.

The source runs beside the targets, as row 0 of their batch, or it is recorded once, in memory or in
a folder, and serves any number of runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusion_lens.border import public
from diffusion_lens.errors import RunError
from diffusion_lens.hook_points import HookContext, Site

Key = tuple[str, str, int, str]
VALUE = "value"


@dataclass(frozen=True)
class FromFirstRow:
    """A hook that puts row 0 of the batch, the source, in every row; each branch has its own."""

    def __call__(self, activation: Tensor, _hook: HookContext) -> Tensor:
        """The source's value in every row."""
        return activation[:1].expand_as(activation).clone()


class Reference:
    """Activations of one run, by hook point, branch and step.

    In a folder, every tensor is written when it comes and read when it is wanted, so that none is
    held in between and memory does not grow with the number of steps.
    """

    @public
    def __init__(self, folder: str | Path | None = None) -> None:
        """Start empty.

        Args:
            folder: Where to keep tensors; None for memory.

        Raises:
            RunError: If the folder is not empty, or cannot be made.
        """
        self.folder = None if folder is None else Path(folder)
        self.kept: dict[Key, Tensor | Path] = {}
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"folder={str(folder)!r} cannot be made ({error})") from error
        if any(self.folder.iterdir()):
            raise RunError(f"{self.folder} is not empty; record a reference into a new folder")

    def put(self, key: Key, value: Tensor) -> None:
        """Keep a value."""
        if self.folder is None:
            self.kept[key] = value
            return
        path = self.folder / f"{len(self.kept):06d}.safetensors"
        save_file({VALUE: value.detach().cpu().contiguous()}, path)
        self.kept[key] = path

    def get(self, key: Key) -> Tensor:
        """A value that was kept.

        Raises:
            RunError: If it was not; the message says what was.
        """
        if key not in self.kept:
            name, branch, step, part = key
            same = [one for one in self.kept if one[0] == name]
            steps = sorted({one[2] for one in same if one[1] == branch})
            raise RunError(
                f"the reference holds no {name} of branch {branch!r} at step {step}, part "
                f"{part}: it has that point in the branches {sorted({one[1] for one in same})}, at "
                f"the steps {steps}; record with the same Sites, guidance and num_inference_steps"
            )
        found = self.kept[key]
        return found if isinstance(found, Tensor) else load_file(found)[VALUE]

    @public
    def recording(self, sites: Sequence[Site | str]) -> list[tuple[Site, Any]]:
        """Make the hooks that fill this reference.

        Args:
            sites: What to record.
        """
        return [(Site.of(site), _Record(self)) for site in sites]

    @public
    def injecting(self, sites: Sequence[Site | str]) -> list[tuple[Site, FromReference]]:
        """Make the hooks that put what was recorded in place.

        Args:
            sites: Where; the same Sites, or some of them.
        """
        return [(Site.of(site), FromReference(self)) for site in sites]

    def __repr__(self) -> str:
        """How much is kept, and where."""
        return f"Reference({len(self.kept)} tensors in {self.folder or 'memory'})"


@dataclass(frozen=True)
class FromReference:
    """A hook that puts a recorded value in every row."""

    reference: Reference = field(compare=False)

    def __call__(self, activation: Tensor, hook: HookContext) -> Tensor:
        """The recorded value of the same point, branch and step."""
        value = self.reference.get(_key(hook)).to(activation)
        if value.shape[1:] != activation.shape[1:] or len(value) not in (1, len(activation)):
            raise RunError(
                f"{hook.name}: the reference has shape {tuple(value.shape)} where the run has "
                f"{tuple(activation.shape)}; both must make images of one size"
            )
        return value.expand_as(activation).clone()


@dataclass(frozen=True)
class _Record:
    """Keeps what it sees."""

    reference: Reference = field(repr=False)
    read_only = True

    def __call__(self, activation: Tensor, hook: HookContext) -> None:
        self.reference.put(_key(hook), activation if hook.owned else activation.clone())


@public
def beside(sites: Sequence[Site | str]) -> list[tuple[Site, FromFirstRow]]:
    """Make the hooks that put the source's activations in place where it is row 0 of the batch.

    Args:
        sites: Where. Without a branch, each guidance branch takes from the source's own.
    """
    return [(Site.of(site), FromFirstRow()) for site in sites]


def _key(hook: HookContext) -> Key:
    return (hook.name, hook.branch, hook.step, repr(hook.part) if hook.part else "whole")
