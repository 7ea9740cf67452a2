"""The two ends that every sweep shares: laying it out, and summing its scores up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusion_lens import HookedDiffusion
from diffusion_lens.analyses.patching.alignment import align
from diffusion_lens.analyses.patching.effects import gathered
from diffusion_lens.analyses.patching.outcome import Metric
from diffusion_lens.analyses.patching.pair import Pair
from diffusion_lens.analyses.patching.plan import Plan, plan
from diffusion_lens.analyses.patching.result import PatchingResult
from diffusion_lens.analyses.patching.scoreboard import Scoreboard
from diffusion_lens.authoring import versions
from diffusion_lens.errors import PatchingError
from diffusion_lens.long_runs.telling import digest, told
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
    alignment = align(model, pair.source.run, pair.base.run)
    grid = plan(
        model,
        sites,
        [axis for axis in axes if axis != "step"],
        alignment=alignment,
        base=pair.base.run,
        positions=positions,
        branch=branch,
    )
    about = {
        "model": model.name,
        "scheduler": type(model.pipe.scheduler).__name__,
        "dtype": str(model.dtype),
        "versions": versions(),
        **pair.about(),
        "metric": told(metric),
        "sites": [str(site) for site in grid.sites.values()],
        "axes": list(axes),
        "labels": {axis: list(labels) for axis, labels in grid.labels.items()},
        "modules": grid.modules,
        "patches": f"{len(grid.cells)}, sha256 {digest(grid.cells)}",
        "unmatched words": list(alignment.unmatched),
    }
    return grid, about


def refuse_impossible(
    metric: Any, steps: int | Sequence[int] | None, *, batch_size: int, level: float
) -> list[int] | None:
    """Refuse what would fail only when the work is done; the steps as a list, None for all.

    Raises:
        PatchingError: If the metric cannot be called, or a number is out of range.
    """
    if not callable(metric):
        raise PatchingError(
            f"metric={metric!r} is no function of an Outcome; take one of "
            "diffusion_lens.analyses.patching, such as latent_recovery, or write one"
        )
    if batch_size < 1 or not 0 < level < 1:
        raise PatchingError(
            f"batch_size={batch_size}, level={level}: a batch has at least one row, and the level "
            "lies between 0 and 1"
        )
    if isinstance(steps, int):
        return [steps]
    return None if steps is None else list(steps)


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
        places=[cell.index for cell in grid.cells],
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
