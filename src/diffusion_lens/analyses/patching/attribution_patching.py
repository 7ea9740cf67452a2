"""Attribution patching: estimates of all patches at once, from gradients.

The estimate of a patch is the gradient of the score in the base, times what the patch changes: two
evaluations and one backward pass for all sites. This is the library's own formulation for heads
and streams of text-to-image models, for which none has been published; it follows Nanda,
Attribution Patching (2023), and for the integrated gradients Hanna et al., arXiv 2403.17806.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffusion_lens import HookedDiffusion, Run
from diffusion_lens.analyses.patching.batch import part_along, refuse_other_length
from diffusion_lens.analyses.patching.corruption import WordNoise
from diffusion_lens.analyses.patching.evaluations import BRANCH, Moment
from diffusion_lens.analyses.patching.outcome import Metric, scored
from diffusion_lens.analyses.patching.pair import Pair, repeats_of
from diffusion_lens.analyses.patching.plan import Cell, Change, Plan
from diffusion_lens.analyses.patching.result import PatchingResult
from diffusion_lens.analyses.patching.schedule import Schedule
from diffusion_lens.analyses.patching.scoreboard import Scoreboard
from diffusion_lens.analyses.patching.scores import latent_projection
from diffusion_lens.analyses.patching.summary import (
    laid_out,
    refuse_impossible,
    summed_up,
)
from diffusion_lens.analyses.patching.teacher_forced import HOLDS, Recorded, TeacherForced
from diffusion_lens.authoring import quiet, take
from diffusion_lens.border import PipelineSetting, Positive, public
from diffusion_lens.errors import PatchingError
from diffusion_lens.hook_points import Sites

METHODS = ("first-order", "integrated")
CITATION = (
    "This library's own formulation for text-to-image models, after Nanda, Attribution Patching, "
    "2023, and Hanna et al., arXiv 2403.17806"
)


@public
def attribution_patching(
    model: HookedDiffusion,
    clean: str | Run,
    corrupted: str | Run | WordNoise,
    *,
    sites: Sites,
    axes: Sequence[str] = ("block",),
    metric: Metric = latent_projection,
    method: str = "first-order",
    points: int = 5,
    direction: str = "denoise",
    seeds: int | Sequence[int] | None = None,
    steps: int | Sequence[int] | None = None,
    positions: Sequence[str | int] | None = None,
    batch_size: int = 16,
    level: float = 0.95,
    least: Positive = 1e-6,
    show_progress: bool = True,
    **settings: PipelineSetting,
) -> PatchingResult:
    """Estimate the effects of teacher-forced activation patching by gradients.

    Good for ranking many sites; check the best ones, and a sample of the others, with
    `activation_patching` and `PatchingResult.rank_correlation`. It misleads where the gradient
    vanishes though the value matters (saturated attention: q, k and scores), where norms bound the
    effect of large changes, and at early steps, where source and base differ most. Where the
    correlation is below about 0.9 try `method="integrated"`; its gradients are taken where the
    context is partly the source's, so that it is not always better.

    Args:
        model: The model.
        clean: As for `activation_patching`.
        corrupted: Likewise.
        sites: Likewise.
        axes: Likewise.
        metric: Likewise; it must be differentiable with respect to the outcome's value.
        method: `"first-order"`: gradients in the base; `"integrated"`: their mean over `points`
            evaluations with conditions on the straight way from the base's to the source's.
        points: How many, at the middles of equal parts of the way.
        direction: As for `activation_patching`.
        seeds: Likewise.
        steps: Likewise.
        positions: Likewise.
        batch_size: Rows of a batch: steps and samples.
        level: As for `activation_patching`.
        least: Likewise.
        show_progress: Show a bar with the time left.
        **settings: Arguments of the pipeline's own call, for both runs.

    Returns:
        Estimates, in the units of `activation_patching`'s effects.

    Raises:
        PatchingError: As `activation_patching` does; and if the metric has no gradient.

    Source: this library's own formulation. On language models: Nanda, Attribution Patching, 2023;
    Hanna et al., arXiv 2403.17806, section 3.
    """
    if method not in METHODS or points < 1:
        raise PatchingError(f"method={method!r}, points={points}: methods are {METHODS}")
    steps = refuse_impossible(metric, steps, batch_size=batch_size, level=level)
    pair = Pair.of(
        clean,
        corrupted,
        direction=direction,
        seeds=seeds,
        settings=settings,
        repeats=repeats_of(model),
    )
    grid, about = laid_out(
        model, pair, sites=sites, axes=axes, positions=positions, branch=BRANCH, metric=metric
    )
    weights = [0.0] if method == "first-order" else [(n + 0.5) / points for n in range(points)]
    about |= {"mode": "teacher-forced", "method": method, "points": len(weights)}
    with quiet(model.pipe):
        forced = TeacherForced(model, pair, grid, batch_size, restart=False)
        schedule = Schedule.of(grid, steps, forced.prepare())
        board = Scoreboard(grid.cells, schedule.steps, len(pair.seeds))
        chunks = list(forced.chunks(schedule))
        bar = {"desc": "attribution", "unit": " batches", "delay": 2, "leave": False}
        for moments, cells in tqdm(chunks, **bar, disable=not show_progress):
            _attribute(forced, board, moments, cells, metric, weights)
    return summed_up(
        board,
        grid,
        pair,
        axes=axes,
        level=level,
        least=least,
        about=about,
        method=f"attribution ({method})",
        citation=CITATION,
    )


def _attribute(
    forced: TeacherForced,
    board: Scoreboard,
    moments: Sequence[Moment],
    cells: Sequence[Cell],
    metric: Metric,
    weights: Sequence[float],
) -> None:
    """Note the estimates of some cells at some moments."""
    recorded = forced.record(moments, keep_base=True)
    with torch.no_grad():
        source, base = scored(metric, recorded.source), scored(metric, recorded.base)
    board.put_sides(moments, source, base)
    gradients = _gradients(forced, recorded, metric, weights)
    for cell in cells:
        estimate = sum(
            _estimate(forced.plan, change, recorded, gradients) for change in cell.changes
        )
        board.put(cell, moments, base + estimate)


def _gradients(
    forced: TeacherForced, recorded: Recorded, metric: Metric, weights: Sequence[float]
) -> dict[str, Tensor]:
    """Mean gradient of the score at every hook point, over points of the way to the source."""
    sums: dict[str, Tensor] = {}
    here, there = forced.conditions["base"], forced.conditions["source"]
    for weight in weights:
        mixed = here.mixed(there, weight) if weight else here
        arguments = forced.evaluate.arguments(mixed, recorded.moments, grad=True)
        with (
            torch.enable_grad(),
            forced.model.caching(list(forced.sites.values()), branches=HOLDS) as cache,
        ):
            value = forced.evaluate(arguments)
            outcome = forced.evaluate.outcome(value, recorded.moments)
            score = scored(metric, outcome.beside(recorded.source, recorded.base))
        if not score.requires_grad:
            raise PatchingError(
                f"the metric {metric!r} has no gradient (does it decode images?); attribution "
                "needs one that is differentiable in `outcome.value`"
            )
        tensors = {name: steps[0] for (name, _), steps in cache.entries.items()}
        there_is = {name: value for name, value in tensors.items() if value.requires_grad}
        found = torch.autograd.grad(score.sum(), list(there_is.values()), allow_unused=True)
        for name, gradient in zip(there_is, found, strict=True):
            if gradient is not None:
                sums[name] = sums.get(name, torch.zeros_like(gradient)) + gradient
    return {name: total / len(weights) for name, total in sums.items()}


def _estimate(
    plan: Plan, change: Change, recorded: Recorded, gradients: Mapping[str, Tensor]
) -> Tensor:
    """Gradient times change, summed over what one patch replaces of a hook point."""
    name = change.name
    mine, theirs = part_along(plan.points[name].axes, change)
    if name not in gradients:  # nothing of it reaches the score
        return torch.zeros(len(recorded.moments))
    refuse_other_length(name, recorded.values[name], recorded.before[name], [change])
    moved = take(recorded.values[name], theirs) - take(recorded.before[name], mine)
    return (moved * take(gradients[name], mine)).flatten(1).sum(1)
