"""Patching whole runs: at every step, or in windows of steps, with the rest of the run left free.

The latents of the two runs differ, so that a patch also carries layout, and what is patched early
changes what later patches meet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusion_lens import HookedDiffusion
from diffusion_lens.analyses.patching.batch import Batch, packed
from diffusion_lens.analyses.patching.donors import Donor
from diffusion_lens.analyses.patching.evaluations import decoded
from diffusion_lens.analyses.patching.outcome import Metric, Outcome, scored
from diffusion_lens.analyses.patching.pair import Pair
from diffusion_lens.analyses.patching.plan import Plan
from diffusion_lens.analyses.patching.schedule import Schedule
from diffusion_lens.analyses.patching.scoreboard import Scoreboard
from diffusion_lens.analyses.patching.several import several_samples
from diffusion_lens.analyses.patching.sweep import Sweep
from diffusion_lens.authoring import TrajectoryReplay
from diffusion_lens.errors import PatchingError


@dataclass(eq=False)
class OnTrajectory:
    """The sweep of one plan over whole runs.

    Attributes:
        model: The model.
        pair: Source and base.
        plan: The patches.
        batch_size: Runs in a batch.
        donor: Gives what is put in.
        restart: Whether patched runs begin where they are first patched.
    """

    model: HookedDiffusion
    pair: Pair
    plan: Plan
    batch_size: int
    donor: Donor
    restart: bool = True

    @torch.no_grad()
    def prepare(self, steps: Any = None) -> tuple[int, ...]:
        """Run what values come from, and the base, once and without decoding.

        Args:
            steps: Steps of hook points whose Site says none; None for all.

        Returns:
            The steps that there are.
        """
        source = self.donor.record(self.model, self.pair, self.plan.sites, steps)
        everyone = range(len(self.pair.seeds))
        with self.model.following() as step:
            self.replay = TrajectoryReplay(self.model.denoiser, step)
            with self.replay.recording():
                base = self._run(everyone)
        latents = _latents(base)
        both = (latents if source is None else source, latents)
        sides = [self._outcome(one, everyone) for one in both]
        self.source, self.base = (side.beside(*sides) for side in sides)
        return tuple(range(base.made_by.steps))

    @torch.no_grad()
    def run(
        self,
        board: Scoreboard,
        windows: Sequence[tuple[int, Sequence[int]]],
        schedule: Schedule,
        metric: Metric,
        advance: Callable[[int], Any],
    ) -> None:
        """Score what is not yet on the board.

        Args:
            board: The scores.
            windows: For each of the board's steps those at which cells are patched.
            schedule: At which of them each hook point is.
            metric: The metric.
            advance: Told how many patched runs are done.
        """
        everyone = range(len(self.pair.seeds))
        sides = [scored(metric, side) for side in (self.source, self.base)]
        for label, steps in windows:
            moments = [(label, sample) for sample in everyone]
            board.put_sides(moments, *sides)
            cells = schedule.active(steps)
            missing = [cell for cell in cells if not board.has(cell, moments)]
            advance((len(cells) - len(missing)) * len(moments))
            at = {
                name: [step for step in steps if step in its] for name, its in schedule.at.items()
            }
            for batch in packed(missing, everyone, rows=self.batch_size):
                latents = self.patched(batch, at, first=min(steps))
                rows = batch.rows.tolist()
                sources, bases = (
                    self._outcome(side.value[rows], rows) for side in (self.source, self.base)
                )
                outcome = self._outcome(latents, rows).beside(sources, bases)
                scores = scored(metric, outcome).unflatten(0, (len(batch.cells), len(everyone)))
                for cell, found in zip(batch.cells, scores, strict=True):
                    board.put(cell, moments, found)
                advance(len(rows))

    @torch.no_grad()
    def patched(self, batch: Batch, at: Mapping[str, Sequence[int]], *, first: int) -> Tensor:
        """Final latents with each cell patched at some steps.

        Args:
            batch: The patches.
            at: For each hook point, its steps.
            first: The first step at which any is patched.
        """
        hooks = batch.hooks(self.plan, self.donor, steps=at)
        start = first if self.restart else 0
        replay = self.replay.until(start, batch.rows, samples=len(self.pair.seeds))
        with self.model.hooks(hooks), replay:
            return _latents(self._run(batch.rows.tolist()))

    def _run(self, samples: Sequence[int]) -> Any:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.pair.base.encoding(self.model))
            run = self.pair.batch(self.pair.base, samples)
            stack.enter_context(several_samples(self.model, run))
            return self.model(run, output_type="latent")

    def _outcome(self, latents: Tensor, samples: Sequence[int]) -> Outcome:
        settings = self.pair.base.run.settings

        def decode(value: Tensor) -> Any:
            return decoded(self.model, value, settings)

        return Outcome(latents, tuple(samples), _decode=decode)


def _latents(out: Any) -> Tensor:
    assert out.latents is not None
    return out.latents


def whole_runs(sweep: Sweep, *, donor: Donor, window: int | None) -> Scoreboard:
    """Score every patch of whole runs.

    Args:
        sweep: The sweep.
        donor: Gives what is put in.
        window: Steps that are patched at once; None for all.
    """
    pair, plan = sweep.pair, sweep.plan
    runs = OnTrajectory(sweep.model, pair, plan, sweep.batch_size, donor, sweep.restart)
    schedule = Schedule.of(plan, sweep.steps, runs.prepare(sweep.steps))
    windows = runs_of(schedule.steps, window=window)
    board = sweep.scoreboard(tuple(step for step, _ in windows))
    total = sum(len(schedule.active(at)) for _, at in windows) * len(pair.seeds)
    sweep.fill(board, total, lambda tell: runs.run(board, windows, schedule, sweep.metric, tell))
    return board


def runs_of(steps: Sequence[int], *, window: int | None) -> list[tuple[int, Sequence[int]]]:
    """The stretches of steps that are patched apart, by their first step.

    Args:
        steps: The steps to patch.
        window: Steps of one stretch, which start at each step; None patches all at once.

    Raises:
        PatchingError: If there is no such stretch.
    """
    if window is None:
        return [(steps[0], tuple(steps))]
    if not 1 <= window <= len(steps):
        raise PatchingError(
            f"window={window}: a window has 1 to {len(steps)} steps, as many as the sweep has"
        )
    return [
        (steps[start], tuple(steps[start : start + window]))
        for start in range(len(steps) - window + 1)
    ]
