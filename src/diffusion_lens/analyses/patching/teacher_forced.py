"""Teacher-forced patching: at each step both prompts are given the clean trajectory's latents.

Nothing accumulates from step to step, so that all steps and samples are rows of a batch. A patch
starts in the middle: at the module that it changes, or right behind the attention whose heads it
changes, since what one head adds to the output is its columns of the output projection times its z.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from diffusion_lens import ActivationCache, HookedDiffusion, Site
from diffusion_lens.analyses.patching.batch import Batch, packed
from diffusion_lens.analyses.patching.behind_heads import HeadOutput, behind_heads
from diffusion_lens.analyses.patching.evaluations import (
    BRANCH,
    Evaluator,
    Moment,
    conditions,
    follow,
)
from diffusion_lens.analyses.patching.outcome import Metric, Outcome, scored
from diffusion_lens.analyses.patching.pair import Pair
from diffusion_lens.analyses.patching.plan import Cell, Plan
from diffusion_lens.analyses.patching.schedule import Schedule
from diffusion_lens.analyses.patching.scoreboard import Scoreboard
from diffusion_lens.analyses.patching.sweep import Sweep
from diffusion_lens.authoring import AtModule, AtScheduler, Replay
from diffusion_lens.errors import PatchingError
from diffusion_lens.hook_points import HookPoint

HOLDS = (BRANCH,)


@dataclass(eq=False)
class Recorded:
    """Source and base at some moments of the trajectory.

    Attributes:
        moments: The moments; one row for each.
        values: The source's value of every hook point of the plan.
        before: The base's value of those where it is needed.
        source: The source's outcome.
        base: The base's outcome.
    """

    moments: Sequence[Moment]
    values: Mapping[str, Tensor]
    before: Mapping[str, Tensor]
    source: Outcome
    base: Outcome


@dataclass(eq=False)
class TeacherForced:
    """The sweep of one plan over steps and samples.

    Attributes:
        model: The model.
        pair: Source and base.
        plan: The patches.
        batch_size: Rows of a batch.
        restart: Whether patches start in the middle.
    """

    model: HookedDiffusion
    pair: Pair
    plan: Plan
    batch_size: int
    restart: bool = True
    _paths: dict[tuple[int, ...], frozenset[str] | set[str]] = field(default_factory=dict)
    _behind: dict[tuple[int, ...], HeadOutput] = field(default_factory=dict)

    def prepare(self) -> tuple[int, ...]:
        """Run the clean trajectory and encode both prompts; the steps that there are."""
        _refuse_what_comes_after(self.plan)
        self.trajectory = follow(self.model, self.pair)
        self.evaluate = Evaluator(self.model, self.pair, self.trajectory)
        self.conditions = {
            side: conditions(self.model, getattr(self.pair, side), self.trajectory)
            for side in ("source", "base")
        }
        self._find_starts()
        return self.trajectory.steps

    @torch.no_grad()
    def run(
        self, board: Scoreboard, schedule: Schedule, metric: Metric, advance: Callable[[int], Any]
    ) -> None:
        """Score what is not yet on the board."""
        for chunk, cells in self.chunks(schedule):
            missing = [cell for cell in cells if not board.has(cell, chunk)]
            advance((len(cells) - len(missing)) * len(chunk))
            if not missing and board.has_sides(chunk):
                continue
            recorded = self.record(chunk)
            board.put_sides(chunk, scored(metric, recorded.source), scored(metric, recorded.base))
            for batch, value in self.patched(recorded, missing):
                outcome = self.outcome(recorded, batch, value)
                scores = scored(metric, outcome).unflatten(0, (len(batch.cells), len(chunk)))
                for cell, found in zip(batch.cells, scores, strict=True):
                    board.put(cell, chunk, found)
                advance(len(batch.rows))

    def chunks(self, schedule: Schedule) -> Iterator[tuple[list[Moment], list[Cell]]]:
        """Moments that are recorded together, with the cells that are patched there."""
        for steps, cells in schedule.stretches():
            moments = [(step, sample) for step in steps for sample in range(len(self.pair.seeds))]
            for start in range(0, len(moments), self.batch_size):
                yield moments[start : start + self.batch_size], cells

    @property
    def sites(self) -> dict[str, Site]:
        """What is recorded of each hook point; single evaluations have no steps."""
        return {name: site.with_(steps=None) for name, site in self.plan.sites.items()}

    def record(self, moments: Sequence[Moment], *, keep_base: bool = False) -> Recorded:
        """Evaluate source and base at some moments.

        Args:
            moments: The moments.
            keep_base: Keep the base's value of every hook point.
        """
        with self.model.caching(list(self.sites.values()), branches=HOLDS) as values:
            source = self.evaluate(self.evaluate.arguments(self.conditions["source"], moments))
        wanted = {name for one in self._behind.values() for name in one.weights}
        kept = [site for name, site in self.sites.items() if keep_base or name in wanted]
        before = ActivationCache()
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.replay.recording(len(moments)))
            if kept:
                before = stack.enter_context(self.model.caching(kept, branches=HOLDS))
            base = self.evaluate(self.evaluate.arguments(self.conditions["base"], moments))
        sides = [self.evaluate.outcome(value, moments) for value in (source, base)]
        outcomes = [side.beside(*sides) for side in sides]
        return Recorded(moments, _values(values), _values(before), *outcomes)

    def patched(self, recorded: Recorded, cells: Sequence[Cell]) -> Iterator[tuple[Batch, Tensor]]:
        """Predictions with each cell patched, batch by batch."""

        def begins(cell: Cell) -> tuple[int, str, tuple[str, ...]]:
            behind = self._behind.get(cell.index)
            paths = [(self.replay.begins_before(path), path) for path in self._paths[cell.index]]
            before, path = min(paths, default=(-1, ""))
            return before, path, tuple(behind.weights) if behind else ()

        for (_, path, _), group in groupby(sorted(cells, key=begins), key=begins):
            for batch in packed(list(group), range(len(recorded.moments)), rows=self.batch_size):
                yield batch, self._predict(recorded, batch, path)

    def outcome(self, recorded: Recorded, batch: Batch, value: Tensor) -> Outcome:
        """What a metric is given of a batch."""
        moments = [recorded.moments[row] for row in batch.rows.tolist()]
        found = self.evaluate.outcome(value, moments)
        sides = (
            self.evaluate.outcome(side.value[batch.rows.to(value.device)], moments)
            for side in (recorded.source, recorded.base)
        )
        return found.beside(*sides)

    def _predict(self, recorded: Recorded, batch: Batch, path: str) -> Tensor:
        moments = [recorded.moments[row] for row in batch.rows.tolist()]
        arguments = self.evaluate.arguments(self.conditions["base"], moments)
        with contextlib.ExitStack() as stack:
            output = None
            behind = self._behind.get(batch.cells[0].index)
            if behind is not None:
                output = self.replay.output(path, batch.rows)
                output = behind.changed(output, batch, recorded.values, recorded.before)
            else:
                hooks = batch.hooks(self.plan, lambda _, hook: recorded.values[hook.name])
                stack.enter_context(self.model.hooks(hooks, branches=HOLDS))
            if path:
                start = self.replay.starting_at(path, batch.rows, output=output)
                stack.enter_context(start)
            return self.evaluate(arguments)

    def _find_starts(self) -> None:
        """For each cell the modules at which its patch can start; none where it is run whole."""
        for cell in self.plan.cells:
            points = [self.plan.points[change.name] for change in cell.changes]
            behind = behind_heads(self.model.denoiser, points) if self.restart else None
            if behind is not None:
                self._behind[cell.index] = behind
            paths = {module_of(point) for point in points} if behind is None else {behind.path}
            self._paths[cell.index] = frozenset() if "" in paths or not self.restart else paths
        self.replay = Replay(self.model.denoiser, frozenset().union(*self._paths.values()))


def teacher_forced(sweep: Sweep) -> Scoreboard:
    """Score every patch of single steps."""
    forced = TeacherForced(sweep.model, sweep.pair, sweep.plan, sweep.batch_size, sweep.restart)
    schedule = Schedule.of(sweep.plan, sweep.steps, forced.prepare())
    board = sweep.scoreboard(schedule.steps)
    total = sum(len(moments) * len(cells) for moments, cells in forced.chunks(schedule))
    sweep.fill(board, total, lambda tell: forced.run(board, schedule, sweep.metric, tell))
    return board


def module_of(point: HookPoint) -> str:
    """The module that must run again where a hook point is changed; empty for all of it."""
    source: Any = point.source
    return source.point.module if isinstance(source, AtModule) else source.block.path


def _values(cache: ActivationCache) -> dict[str, Tensor]:
    return {name: steps[0] for (name, _), steps in cache.entries.items()}


def _refuse_what_comes_after(plan: Plan) -> None:
    """Refuse hook points that a single evaluation of the denoiser has not.

    Raises:
        PatchingError: Naming the point.
    """
    for name, point in plan.points.items():
        branch = plan.sites[name].branch
        if isinstance(point.source, AtScheduler) or branch != BRANCH:
            what = f"is patched in the branch {branch!r}" if branch != BRANCH else "comes after it"
            raise PatchingError(
                f"teacher-forced patching evaluates the denoiser with the prompt alone, and {name} "
                f"{what}; use mode='on-trajectory'"
            )
