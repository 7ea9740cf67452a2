"""The activations of a run: by hook point, guidance branch and step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_lens.activation_cache import stacking, storage
from diffusion_lens.activation_cache.stacking import ranges
from diffusion_lens.border import public
from diffusion_lens.border.devices import Device
from diffusion_lens.errors import CacheKeyError, closest, listing
from diffusion_lens.hook_points.selectors import GUIDED, Part
from diffusion_lens.showing.one_line import counted

MIXED: Part = ((-1, ()),)
"""A part that is not the same wherever a point was recorded."""

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
            a missing name was kept whole. Where words stand at other tokens in another branch or
            run, the part is `MIXED`.
        sizes: For what was not kept whole, the full length of each axis, by name and axis.
        info: What made the run, for saved files.
    """

    def __init__(
        self,
        entries: Mapping[Key, Mapping[int, Tensor]] | None = None,
        *,
        axes: Mapping[str, tuple[str, ...]] | None = None,
        times: Mapping[int, float | Tensor] | None = None,
        parts: Mapping[str, Part] | None = None,
        sizes: Mapping[str, Mapping[str, int]] | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        """Hold what is given, or start empty."""
        self.entries: dict[Key, dict[int, Tensor]] = {
            key: dict(steps) for key, steps in (entries or {}).items()
        }
        self.axes = dict(axes or {})
        self.times = dict(times or {})
        self.parts = dict(parts or {})
        self.sizes = {name: dict(lengths) for name, lengths in (sizes or {}).items()}
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
            raise CacheKeyError(f"step {step} is not in this cache, it holds {ranges(self.steps)}")
        return _OneStep(
            {key: {step: at[step]} for key, at in self.entries.items() if step in at},
            **self._beside(),
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
        shapes = {tuple(value.shape) for value in steps.values()}
        if len(shapes) > 1:
            raise CacheKeyError(
                f"{key[0]!r} has other shapes at other steps ({listing(sorted(shapes))}): runs of "
                "several sizes came into one cache; read single steps with `cache.at(step=...)`, "
                "and use one context for one run"
            )
        return torch.stack([steps[step] for step in sorted(steps)])

    def steps_of(self, asked: Any) -> list[int]:
        """The steps along the step axis of one name; none where it is reduced.

        Raises:
            CacheKeyError: If it is not in the cache, or if several branches are.
        """
        return sorted(step for step in self.entries[self._key(asked)] if step >= 0)

    def __contains__(self, asked: object) -> bool:
        """Whether a name (or (short name, block)) is in the cache, in whichever branch."""
        try:
            name, branch = self._name(asked)
        except CacheKeyError:
            return False
        return any(one == name and branch in (None, at) for one, at in self.entries)

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
            name: A short name such as `img.hook_resid_post` or a pattern over whole names, whose
                rows come in the order of blocks; or several names, in whose order they come.

        Raises:
            CacheKeyError: If shapes (a U-Net has several resolutions), steps or branches differ;
                the message lists the groups that stack.
        """
        found = stacking.names(name, self.keys())
        stacking.refuse_unequal(name, found, {one: self._kind(one) for one in found})
        return torch.stack([self[one] for one in found])

    def _kind(self, name: str) -> stacking.Kind:
        key = self._key(name)
        steps = self.entries[key]
        shape = tuple(next(iter(steps.values())).shape)
        return stacking.Kind(shape, self.axes.get(name), key[1], tuple(sorted(steps)))

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
        """Write safetensors and json into a folder (made if missing); a cache there is replaced.

        Raises:
            CacheFileError: If the folder holds something else.
        """
        return storage.save(self, Path(folder))

    @classmethod
    @public
    def load(cls, folder: str | Path, *, device: str = "cpu") -> ActivationCache:
        """Read a folder written by `save` or by a run with `spool=`. Nothing is unpickled.

        The tensors of a spooled cache are mapped, not read: the folder must stay in place.

        Raises:
            CacheFileError: If files are missing, cut short, or something else.
        """
        return cls(**storage.load(Path(folder), device=device))

    def __repr__(self) -> str:
        """Size and contents in one line."""
        return (
            f"ActivationCache({counted(len(self), 'hook point')}, branches {self.branches}, steps "
            f"{ranges(self.steps)}, {readable_bytes(self.nbytes)})"
        )

    # -- inside -------------------------------------------------------------------------------

    def _with(self, entries: Mapping[Key, Mapping[int, Tensor]]) -> ActivationCache:
        return type(self)(entries, **self._beside())

    def _beside(self) -> dict[str, Any]:
        """What is known of the entries."""
        return {
            "axes": self.axes,
            "times": self.times,
            "parts": self.parts,
            "sizes": self.sizes,
            "info": self.info,
        }

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
            f"{name!r} is not in this cache ({counted(len(self), 'hook point')}). {hint}"
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


def readable_bytes(count: float) -> str:
    """A byte count for people: `1.5 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
