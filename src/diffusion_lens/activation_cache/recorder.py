"""The hook that fills a cache, within a byte budget that is worked out before anything is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_lens.activation_cache.cache import MIXED, ActivationCache, readable_bytes
from diffusion_lens.activation_cache.spool import Spool
from diffusion_lens.errors import CacheBudgetError
from diffusion_lens.hook_points.context import HookContext
from diffusion_lens.reducers import Reducer, reducer_factory
from diffusion_lens.showing.one_line import counted


class CacheRecorder:
    """A read-only hook that records what it sees into a cache.

    Args:
        cache: Where to.
        device: Keep tensors there (default: where they are).
        dtype: Keep them in this precision.
        reduce: Keep one reduced value for each point and branch in place of every step.
        spool: Write every tensor to this folder as it comes and keep none in memory.
        max_bytes: Refuse to keep more, where a prediction was not possible.
    """

    read_only = True

    def __init__(
        self,
        cache: ActivationCache,
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        reduce: str | Reducer | Callable[[], Reducer] | None = None,
        spool: str | Path | None = None,
        max_bytes: int | None = None,
    ) -> None:
        """Start recording into an empty cache."""
        self.cache = cache
        self.device = device
        self.dtype = dtype
        self.make_reducer = None if reduce is None else reducer_factory(reduce)
        self.keeps = self.make_reducer is None or getattr(self.make_reducer(), "keeps", True)
        self.reducers: dict[tuple[str, str], Reducer] = {}
        self.spool = None if spool is None else Spool(Path(spool))
        self.recorded_bytes = 0
        self.max_bytes = max_bytes if self.spool is None else None
        self.sources: dict[tuple[str, str], tuple[int | None, int | None]] = {}

    def __call__(self, activation: Tensor, hook: HookContext) -> None:
        """Record one activation."""
        key = (hook.name, hook.branch)
        if hook.part:
            known = self.cache.parts.setdefault(hook.name, hook.part)
            if known != hook.part:
                self.cache.parts[hook.name] = MIXED
            self.cache.sizes[hook.name] = dict(hook.whole)
        if self.make_reducer is not None:
            reducer = self.reducers.get(key)
            if reducer is None:
                reducer = self.make_reducer()
                self._count(activation.nbytes, steps=1)
                gone = getattr(reducer, "over", ())
                self.cache.axes[hook.name] = tuple(axis for axis in hook.axes if axis not in gone)
            reducer.update(activation, hook)
            self.reducers[key] = reducer
            return
        self.cache.axes[hook.name] = hook.axes
        kept = activation.to(device=self.device, dtype=self.dtype)
        if kept is activation and not hook.owned:
            kept = activation.clone()
        # `again` is of an earlier run in the same context.
        again = self.cache.entries.get(key, {}).get(hook.step)
        self._count(kept.nbytes - (0 if again is None else again.nbytes), steps=hook.step + 1)
        steps = self.cache.entries.setdefault(key, {})
        steps[hook.step] = kept if self.spool is None else self.spool.add(*key, hook.step, kept)
        if hook.evaluation is not None and (again is not None or hook.step not in self.cache.times):
            self.cache.times[hook.step] = hook.evaluation.timestep_known()

    def _count(self, nbytes: int, *, steps: int) -> None:
        self.recorded_bytes += nbytes
        if self.max_bytes is not None:
            refuse_over_budget(self.recorded_bytes, self.max_bytes, points=1, steps=steps)

    def finish(self) -> ActivationCache:
        """Put reduced values into the cache and give it back."""
        for key, reducer in self.reducers.items():
            result = reducer.result().to(device=self.device, dtype=self.dtype)
            self.cache.entries[key] = {
                -1: result if self.spool is None else self.spool.add(*key, -1, result)
            }
        self.cache.times.update({step: float(time) for step, time in self.cache.times.items()})
        if self.spool is not None:
            self.spool.finish(self.cache)
        return self.cache

    def __repr__(self) -> str:
        """As a report shows it."""
        return "cache"


@dataclass(frozen=True)
class Recording:
    """What one of several Sites gives to a recorder.

    Names that several Sites select are recorded once.
    """

    recorder: CacheRecorder
    number: int
    read_only = True

    @property
    def keeps(self) -> bool:
        """Whether tensors are kept as they come."""
        return self.recorder.keeps

    def __call__(self, activation: Tensor, hook: HookContext) -> None:
        """Record one activation, unless another Site has recorded it at this step."""
        key = (hook.name, hook.branch)
        step, number = self.recorder.sources.get(key, (None, None))
        if step != hook.step or number == self.number:
            self.recorder.sources[key] = (hook.step, self.number)
            self.recorder(activation, hook)

    def __repr__(self) -> str:
        """As a report shows it."""
        return "cache"


def free_bytes(device: Any) -> int:
    """Free memory of a device."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


def refuse_over_budget(wanted: int, budget: int, *, points: int, steps: int) -> None:
    """Refuse a cache that does not fit.

    Raises:
        CacheBudgetError: With the number and how to narrow it.
    """
    if wanted > budget:
        raise CacheBudgetError(
            f"this cache would take {readable_bytes(wanted)} ({counted(points, 'hook point')}, "
            f"{counted(steps, 'step')}), the budget is {readable_bytes(budget)}. Narrow it with "
            "names_filter=, steps=, a Site with heads/query/key, dtype=torch.float16 or "
            "reduce='mean'; write it to disk with spool=folder; or raise max_bytes="
        )
