"""The activations of a run: by hook point, guidance branch and step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_lens.activation_cache import storage
from diffusion_lens.border import public
from diffusion_lens.border.devices import Device
from diffusion_lens.errors import CacheKeyError, closest, listing
from diffusion_lens.hook_points.names import match_names

GUIDED = "guided"
Part = tuple[tuple[int, slice | tuple[int, ...]], ...]
Key = tuple[str, str]
"""(name, branch)"""


class ActivationCache:
    """What hooks recorded, as TransformerLens users know it, with a step axis in front.

    `cache["blocks.3.attn.img.hook_z"]` has axes step, batch, pos, head, d_head. Short names take
    the block from a second index: `cache["attn.img.hook_z", 3]`. `cache.at(step=7)[name]` has no
    step axis. With one branch cached, names mean that branch; otherwise take `cache.cond` or
    `cache.uncond` first. Reduced entries have no step axis.

    Attributes:
        entries: Tensors by (name, branch), then by step; step -1 holds a reduced value.
        axes: Axis names of the entries by name, without `step`.
        times: Timestep of each cached step.
        parts: What was kept of a point, by name, as (dimension, index) pairs without the step axis;
            a missing name was kept whole.
        info: What made the run, for saved files.
    """

    def __init__(
        self,
        entries: Mapping[Key, Mapping[int, Tensor]] | None = None,
        *,
        axes: Mapping[str, tuple[str, ...]] | None = None,
        times: Mapping[int, float | Tensor] | None = None,
        parts: Mapping[str, Part] | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        """Hold what is given, or start empty."""
        self.entries: dict[Key, dict[int, Tensor]] = {
            key: dict(steps) for key, steps in (entries or {}).items()
        }
        self.axes = dict(axes or {})
        self.times = dict(times or {})
        self.parts = dict(parts or {})
        self.info = dict(info or {})

    # -- reading ------------------------------------------------------------------------------

    @property
    def branches(self) -> list[str]:
        """The guidance branches in the cache (what comes after guidance apart)."""
        return list(dict.fromkeys(branch for _, branch in self.entries if branch != GUIDED))

    @property
    def steps(self) -> list[int]:
        """The steps in the cache."""
        return sorted({step for steps in self.entries.values() for step in steps if step >= 0})

    @property
    def timesteps(self) -> list[float]:
        """The scheduler's timestep of each of `steps`."""
        return [float(self.times[step]) for step in self.steps]

    @property
    def cond(self) -> ActivationCache:
        """The conditional branch alone."""
        return self.branch("cond")

    @property
    def uncond(self) -> ActivationCache:
        """The unconditional branch alone."""
        return self.branch("uncond")

    @public
    def branch(self, name: str) -> ActivationCache:
        """One guidance branch alone.

        Raises:
            CacheKeyError: If it is not in the cache.
        """
        if name not in self.branches:
            raise CacheKeyError(
                f"branch {name!r} is not in this cache, it holds {self.branches}; record it with "
                f'`run_with_cache(..., branch="{name}")` or branch="all"'
            )
        return self._with({key: at for key, at in self.entries.items() if key[1] in (name, GUIDED)})

    @public
    def at(self, *, step: int) -> ActivationCache:
        """One step alone; its tensors have no step axis.

        Raises:
            CacheKeyError: If the step is not in the cache.
        """
        if step not in self.steps:
            raise CacheKeyError(f"step {step} is not in this cache, it holds {_ranges(self.steps)}")
        return _OneStep(
            {key: {step: at[step]} for key, at in self.entries.items() if step in at},
            axes=self.axes,
            times=self.times,
            parts=self.parts,
            info=self.info,
        )

    def __getitem__(self, asked: Any) -> Tensor:
        """The tensor of a hook point, with a step axis in front unless it is reduced.

        Raises:
            CacheKeyError: If it is not in the cache, or if several branches are.
        """
        key = self._key(asked)
        steps = self.entries[key]
        if -1 in steps:
            return steps[-1]
        return torch.stack([steps[step] for step in sorted(steps)])

    def __contains__(self, asked: object) -> bool:
        """Whether a name (or (short name, block)) is in the cache."""
        try:
            self._key(asked)
        except CacheKeyError:
            return False
        return True

    def __iter__(self) -> Iterator[str]:
        """The names in the cache."""
        return iter(self.keys())

    def __len__(self) -> int:
        """Number of names."""
        return len(self.keys())

    def keys(self) -> list[str]:
        """The names in the cache, in the order in which they were recorded."""
        return list(dict.fromkeys(name for name, _ in self.entries))

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors."""
        return ((name, self[name]) for name in self.keys())

    def values(self) -> Iterator[Tensor]:
        """The tensors."""
        return (tensor for _, tensor in self.items())

    @public
    def stack(self, name: str | Sequence[str]) -> Tensor:
        """One quantity of all blocks on a new `block` axis in front.

        Args:
            name: A short name such as `img.hook_resid_post`, a pattern over whole names, or
                several whole names.

        Raises:
            CacheKeyError: If shapes differ (a U-Net has several resolutions); the message lists
                the groups that stack.
        """
        pattern = f"**.{name}" if isinstance(name, str) and "*" not in name else name
        found = match_names(pattern, self.keys(), model="this cache")
        groups: dict[tuple[int, ...], list[str]] = {}
        for one in found:
            groups.setdefault(tuple(self[one].shape), []).append(one)
        if len(groups) > 1:
            lines = "; ".join(f"{shape}: {listing(names)}" for shape, names in groups.items())
            raise CacheKeyError(
                f"{name!r} has {len(groups)} shapes in this model, which do not stack: {lines}. "
                "Stack one group by giving its names."
            )
        return torch.stack([self[one] for one in found])

    # -- changing -----------------------------------------------------------------------------

    @public(args=Device | torch.dtype | Tensor | None)
    def to(self, *args: Any, **kwargs: Any) -> ActivationCache:
        """A cache on another device or in another dtype: `cache.to("cpu", torch.float16)`."""
        moved = {
            key: {step: value.to(*args, **kwargs) for step, value in steps.items()}
            for key, steps in self.entries.items()
        }
        return self._with(moved)

    def detach(self) -> ActivationCache:
        """A cache whose tensors are cut off from autograd."""
        return self._with(
            {
                key: {step: value.detach() for step, value in at.items()}
                for key, at in self.entries.items()
            }
        )

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors take."""
        return sum(
            value.numel() * value.element_size()
            for steps in self.entries.values()
            for value in steps.values()
        )

    @public
    def save(self, folder: str | Path) -> Path:
        """Write safetensors and json into a folder (made if missing).

        Raises:
            CacheFileError: If the folder holds something else.
        """
        return storage.save(self, Path(folder))

    @classmethod
    @public
    def load(cls, folder: str | Path, *, device: str = "cpu") -> ActivationCache:
        """Read a folder written by `save`. Nothing is unpickled.

        Raises:
            CacheFileError: If files are missing, cut short, or something else.
        """
        return cls(**storage.load(Path(folder), device=device))

    def __repr__(self) -> str:
        """Size and contents in one line."""
        return (
            f"ActivationCache({len(self)} hook points, branches {self.branches}, steps "
            f"{_ranges(self.steps)}, {readable_bytes(self.nbytes)})"
        )

    # -- inside -------------------------------------------------------------------------------

    def _with(self, entries: Mapping[Key, Mapping[int, Tensor]]) -> ActivationCache:
        return type(self)(
            entries, axes=self.axes, times=self.times, parts=self.parts, info=self.info
        )

    def _key(self, asked: object) -> Key:
        name, branch = self._name(asked)
        branches = [at for one, at in self.entries if one == name]
        if not branches:
            raise self.missing(name)
        if branch is None and len(branches) > 1:
            raise CacheKeyError(
                f"{name!r} was cached in the branches {branches}: take `cache.{branches[0]}[name]` "
                f"or `cache.branch({branches[0]!r})[name]`"
            )
        if branch is not None and branch not in branches:
            raise CacheKeyError(f"{name!r} was cached in the branches {branches}, not {branch!r}")
        return name, branch or branches[0]

    @public
    def missing(self, name: str) -> CacheKeyError:
        """The error that says a name is not in the cache, and which come close."""
        near = closest(name, self.keys())
        hint = f"Closest: {listing(near)}. " if near else ""
        return CacheKeyError(
            f"{name!r} is not in this cache ({len(self)} hook points). {hint}"
            "Choose what is cached with `names_filter=`."
        )

    def _name(self, asked: object) -> tuple[str, str | None]:
        if isinstance(asked, str):
            return asked, None
        if not isinstance(asked, tuple) or len(asked) not in (2, 3):
            raise CacheKeyError(
                f"a cache is indexed by a name, or by (short name, block), got {asked!r}; its "
                "names are in `cache.keys()`"
            )
        short, block, *rest = asked
        return f"blocks.{block}.{short}", rest[0] if rest else None


class _OneStep(ActivationCache):
    """A cache of one step, whose tensors have no step axis."""

    def __getitem__(self, asked: Any) -> Tensor:
        """The tensor of a hook point at this step."""
        return next(iter(self.entries[self._key(asked)].values()))


def _ranges(steps: Sequence[int]) -> str:
    """Numbers as ranges: `0-4, 7`."""
    if not steps:
        return "none"
    groups: list[list[int]] = []
    for step in steps:
        if groups and groups[-1][-1] == step - 1:
            groups[-1].append(step)
        else:
            groups.append([step])
    return ", ".join(
        str(group[0]) if len(group) == 1 else f"{group[0]}-{group[-1]}" for group in groups
    )


def readable_bytes(count: float) -> str:
    """A byte count for people: `1.5 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
