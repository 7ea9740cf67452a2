"""The two ends that every sweep shares: laying it out, and summing its scores up."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from diffusion_lens import HookedDiffusion
from diffusion_lens.analyses.patching.alignment import align
from diffusion_lens.analyses.patching.outcome import Metric
from diffusion_lens.analyses.patching.pair import Pair, told
from diffusion_lens.analyses.patching.plan import Plan, plan
from diffusion_lens.analyses.patching.result import PatchingResult, gathered
from diffusion_lens.analyses.patching.scoreboard import Scoreboard
from diffusion_lens.errors import PatchingError
from diffusion_lens.hooked_diffusion.output import versions
from diffusion_lens.metrics.recovery import normalised


def laid_out(
    model: HookedDiffusion,
    pair: Pair,
    *,
    sites: Any,
    axes: Sequence[str],
    positions: Sequence[str | int] | None,
    branch: str | None,
    metric: Metric,
) -> tuple[Plan, dict[str, Any]]:
    """The patches of a sweep, and what it depends on, as json has it.

    Raises:
        PatchingError: If prompts cannot be aligned, or sites and axes do not fit together.
    """
    alignment = align(model, pair.source.prompt, pair.base.prompt)
    grid = plan(
        model,
        sites,
        [axis for axis in axes if axis != "step"],
        alignment=alignment,
        base=pair.base.prompt,
        positions=positions,
        branch=branch,
    )
    about = {
        "model": model.name,
        "scheduler": type(model.tracker.scheduler()).__name__,
        "dtype": str(model.dtype),
        "versions": versions(),
        **pair.about(),
        "metric": described(metric),
        "sites": [str(site) for site in grid.sites.values()],
        "axes": list(axes),
        "labels": {axis: list(labels) for axis, labels in grid.labels.items()},
        "unmatched words": list(alignment.unmatched),
    }
    return grid, about


def chosen_steps(wanted: Sequence[int] | None, there: tuple[int, ...]) -> tuple[int, ...]:
    """The steps to patch, in order; None is all.

    Raises:
        PatchingError: If there are no such steps.
    """
    if wanted is None:
        return there
    missing = [step for step in wanted if step not in there]
    if missing or not len(wanted):
        raise PatchingError(
            f"steps={list(wanted)}: the run has the steps {there[0]} to {there[-1]}; raise "
            "num_inference_steps"
        )
    return tuple(sorted(set(wanted)))


def summed_up(
    board: Scoreboard,
    grid: Plan,
    pair: Pair,
    *,
    axes: Sequence[str],
    level: float,
    least: float,
    about: dict[str, Any],
    **more: Any,
) -> PatchingResult:
    """Effects in units of the difference between source and base, with means and intervals."""
    scores, source, base = board.scores[:-2], board.scores[-2], board.scores[-1]
    sides = {"source": source.expand_as(scores), "base": base.expand_as(scores)}
    found = gathered(
        normalised(scores, **sides, least=least),
        places=[cell.place for cell in grid.cells],
        axes=axes,
        labels=grid.labels,
        steps=board.steps,
        level=level,
    )
    return PatchingResult(
        **found,
        seeds=pair.seeds,
        source=source,
        base=base,
        left_out=dict(grid.left_out),
        made_by=about,
        **more,
    )


def described(metric: Any) -> str:
    """A metric by its name and arguments, the same in every process."""
    if isinstance(metric, partial):
        given = {name: told(value) for name, value in metric.keywords.items()}
        return f"{described(metric.func)}({given})"
    return getattr(metric, "__qualname__", None) or repr(metric)
