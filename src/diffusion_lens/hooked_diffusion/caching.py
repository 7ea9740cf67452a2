"""Recording a cache while the model runs: what to record, the budget, the progress bar."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from diffusion_lens.activation_cache import ActivationCache, readable_bytes
from diffusion_lens.activation_cache.recorder import (
    CacheRecorder,
    Recording,
    free_bytes,
    refuse_over_budget,
)
from diffusion_lens.engine.denoisers import take_turns
from diffusion_lens.engine.evaluation import Evaluation
from diffusion_lens.engine.modular import is_modular, loops_of
from diffusion_lens.engine.registration import Registration
from diffusion_lens.engine.taps import Tap
from diffusion_lens.engine.wiring import Wiring
from diffusion_lens.errors import RunError
from diffusion_lens.hook_points.selectors import GUIDED
from diffusion_lens.hook_points.site import Site
from diffusion_lens.hooked_diffusion.silence import hooks_on
from diffusion_lens.reducers import Reducer

LIGHT = ("hook_latents", "hook_noise_pred", "hook_sample", "hook_guided_pred")
"""What is cached where nothing is named: latents and predictions of every step."""


@dataclass(frozen=True)
class CacheOptions:
    """What to cache and how.

    Attributes:
        names_filter: Names, patterns, predicates or Sites; None for the light default.
        steps: Steps to cache, where a Site does not say it.
        branch: Guidance branch, where a Site does not say it; `"all"` for each separately.
        device: Keep tensors there.
        dtype: Keep them in this precision.
        reduce: `"mean"`, `"sum"`, `"last"`, a reducer, or a maker of reducers.
        max_bytes: Refuse to take more; by default half of what is free.
        spool: Keep tensors in this folder in place of memory.
    """

    names_filter: Any = None
    steps: Any = None
    branch: str = "cond"
    device: str | torch.device | None = None
    dtype: torch.dtype | None = None
    reduce: str | Reducer | Callable[[], Reducer] | None = None
    max_bytes: int | None = None
    spool: str | Path | None = None

    def sites(self, pipe: Any) -> list[Site]:
        """The Sites to record.

        Args:
            pipe: The pipeline, whose scheduler's points the light default has; they alone where
                denoisers take steps in turn. None for a bare denoiser.
        """
        wanted = self.names_filter
        if wanted is None and pipe is not None:
            wanted = LIGHT[2:] if take_turns(pipe) else LIGHT
        elif wanted is None:
            wanted = LIGHT[:2]
        if isinstance(wanted, str | Site) or callable(wanted):
            wanted = [wanted]
        wanted = list(wanted)
        if not wanted:
            raise RunError("names_filter is empty: name what to cache, or leave it out")
        branch = None if self.branch == "all" else self.branch
        sites = []
        for site in map(Site.of, wanted):
            steps = site.steps if site.steps is not None else self.steps
            sites.append(site.with_(steps=steps, branch=site.branch or branch))
        return sites


@contextlib.contextmanager
def recording(wiring: Wiring, options: CacheOptions) -> Iterator[ActivationCache]:
    """Fill a cache while the context is open; it is complete when the context ends."""
    recorder = CacheRecorder(
        ActivationCache(),
        device=options.device,
        dtype=options.dtype,
        reduce=options.reduce,
        spool=options.spool,
    )
    registrations = [
        Registration(site, Recording(recorder, number), read_only=True)
        for number, site in enumerate(options.sites(wiring.pipe))
    ]
    with hooks_on(wiring, registrations):
        refuse_two_parts(wiring.taps_of(registrations))
        budget = _Budget(wiring, options, recorder, registrations)
        listeners = wiring.tracker.on_evaluation
        if options.spool is None:
            listeners.append(budget.check)
        try:
            yield recorder.cache
        finally:
            if budget.check in listeners:
                listeners.remove(budget.check)
            recorder.finish()


def refuse_two_parts(taps: list[Tap]) -> None:
    """Refuse to keep two parts of one hook point under one name.

    Raises:
        RunError: Naming the point and the Sites.
    """
    sites: dict[str, Site] = {}
    for tap in taps:
        site = tap.registration.site
        first = sites.setdefault(tap.point.name, site)
        if first.part != site.part:
            raise RunError(
                f"{tap.point.name} is selected in two ways, by {first!r} and {site!r}; a cache "
                "holds one part of a hook point: join them into one Site (heads=[0, 1]), or use "
                "two caching contexts"
            )


class _Budget:
    """Refuses a run whose cache would not fit, before anything is kept."""

    def __init__(
        self,
        wiring: Wiring,
        options: CacheOptions,
        recorder: CacheRecorder,
        registrations: list[Registration],
    ) -> None:
        self.dtype = wiring.denoiser.dtype  # diffusers walks all weights for it
        self.recorder = recorder
        self.reduced = options.reduce is not None
        device = options.device or wiring.device
        wanted = options.max_bytes
        self.budget = free_bytes(device) // 2 if wanted is None else wanted
        recorder.max_bytes = None if options.spool is not None else self.budget
        self.element_size = None if options.dtype is None else options.dtype.itemsize
        self.taps: list[Tap] = wiring.taps_of(registrations)
        self.first = 0

    def check(self, evaluation: Evaluation) -> None:
        """Check the prediction at the first step, and the sizes that came true at the second."""
        tracker, first = evaluation.tracker, evaluation.run.evaluations == 1
        if first:
            self.first = evaluation.step
        if first or (evaluation.step == self.first + 1 and not self.reduced):
            ahead = max(tracker.steps_ahead or 0, evaluation.step + 1)
            self._refuse(self._wanted(evaluation, ahead), ahead - self.first)

    def _wanted(self, evaluation: Evaluation, ahead: int) -> int:
        sizes: dict[tuple[str, str], int] = {}
        steps: dict[tuple[str, str], set[int]] = {}
        for tap in self.taps:
            site, name = tap.registration.site, tap.point.name
            kept = self.recorder.cache.entries
            stored = {key[1]: kept[key] for key in kept if key[0] == name}
            rows = {branch: at for branch, at in evaluation.rows if site.fires_in(branch)}
            for branch in (*rows, *stored):
                key = (name, branch)
                if branch not in rows and branch != GUIDED and not site.fires_in(branch):
                    continue
                steps.setdefault(key, set()).update(filter(site.has_step, range(self.first, ahead)))
                if branch in stored:
                    sizes[key] = next(iter(stored[branch].values())).nbytes
                elif key not in sizes:
                    sizes[key] = self._predicted(tap, evaluation, branch, rows[branch])
        most = 1 if self.reduced else ahead
        return sum(size * min(len(steps[key]), most) for key, size in sizes.items())

    def _predicted(self, tap: Tap, evaluation: Evaluation, branch: str, rows: slice) -> int:
        """Bytes of one step, 0 where the weights do not tell."""
        shape = tap.shape(evaluation, branch, rows)
        if shape is None:
            return 0
        wide = torch.promote_types(self.dtype, torch.float32)
        dtype = wide if "query" in tap.point.axes or self.reduced else self.dtype
        return torch.Size(shape).numel() * (self.element_size or dtype.itemsize)

    def _refuse(self, wanted: int, steps: int) -> None:
        names = {tap.point.name for tap in self.taps}
        refuse_over_budget(wanted, self.budget, points=len(names), steps=steps)


@contextlib.contextmanager
def progress(wiring: Wiring, cache: ActivationCache, *, show: bool) -> Iterator[None]:
    """A progress bar over steps with the bytes that the cache holds, in place of the pipeline's."""
    if not show or wiring.pipe is None:
        yield
        return
    with quiet(wiring.pipe), tqdm(desc="caching", unit=" steps", delay=2, leave=False) as bar:

        def advance() -> None:
            bar.total = wiring.tracker.steps_ahead
            bar.set_postfix_str(readable_bytes(cache.nbytes), refresh=False)
            bar.update()

        wiring.tracker.on_step.append(advance)
        try:
            yield
        finally:
            wiring.tracker.on_step.remove(advance)


@contextlib.contextmanager
def quiet(pipe: Any) -> Iterator[None]:
    """Switch a pipeline's own progress bars off while the context is open."""
    owners = loops_of(pipe) if is_modular(pipe) else [pipe]
    before = [getattr(owner, "_progress_bar_config", None) for owner in owners]
    for owner, config in zip(owners, before, strict=True):
        owner.set_progress_bar_config(**{**(config or {}), "disable": True})
    try:
        yield
    finally:
        for owner, config in zip(owners, before, strict=True):
            if config is None:
                del owner._progress_bar_config
            else:
                owner._progress_bar_config = config
