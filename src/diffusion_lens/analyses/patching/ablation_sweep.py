"""Ablation sweeps: one part after another without what it says, and what becomes of the run.

On the engine of activation patching: what is put in is not another prompt's value but none at all
(zeros), an average, or what the same part said elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from diffusion_lens import HookedDiffusion, Run
from diffusion_lens.analyses.patching.donors import Donor, MeanOfRuns, ValuesOfRuns, Zeros
from diffusion_lens.analyses.patching.effects import gathered
from diffusion_lens.analyses.patching.kept import kept_in
from diffusion_lens.analyses.patching.outcome import Metric
from diffusion_lens.analyses.patching.pair import Pair, repeats_of
from diffusion_lens.analyses.patching.references import References
from diffusion_lens.analyses.patching.result import AblationResult
from diffusion_lens.analyses.patching.scores import latent_distance
from diffusion_lens.analyses.patching.summary import laid_out, refuse_impossible
from diffusion_lens.analyses.patching.sweep import Sweep
from diffusion_lens.analyses.patching.trajectory import whole_runs
from diffusion_lens.authoring import quiet
from diffusion_lens.border import Count, PipelineSetting, public
from diffusion_lens.errors import PatchingError, refuse_unknown
from diffusion_lens.hook_points import Sites

VALUES = ("zero", "mean", "resample")
DECIDE = ("seeds", "sites", "axes", "labels", "steps", "window", "restart", "value", "others")
"""What of a result's `made_by` decides on scores, besides run, model and metric."""


@public
def ablation_sweep(
    model: HookedDiffusion,
    prompt: str | Run,
    *,
    sites: Sites,
    axes: Sequence[str] = ("block",),
    value: str = "zero",
    others: str | Sequence[str] = (),
    metric: Metric = latent_distance,
    seeds: int | Sequence[int] | None = None,
    steps: int | Sequence[int] | None = None,
    window: Count = 1,
    positions: Sequence[str | int] | None = None,
    branch: str | None = "cond",
    batch_size: int = 16,
    restart: bool = True,
    level: float = 0.95,
    resume: str | Path | None = None,
    show_progress: bool = True,
    **settings: PipelineSetting,
) -> AblationResult:
    """Ablate one part after another and say how far a metric moves from the intact run.

    An effect shows that a part is *needed* for this prompt while all others are there; none shows
    little, since others may stand in for it. Zeros take a part far from what later layers have
    seen, and effects can come from that alone; the mean is milder; resampled values stay on the
    model's distribution, but ask whether it matters which value, not whether there is one.

    Args:
        model: The model.
        prompt: Prompt or `Run`.
        sites: Names, patterns or Sites; everything that they select takes part. Heads, tokens,
            branch and steps that a Site names are those that are ablated there.
        axes: What is ablated apart: `"block"`, `"stream"`, `"attention"`, `"point"`, `"head"`,
            `"pos"` (words) and `"step"`. Parts with the same labels are ablated together. Without
            `"step"`, parts are ablated at all of `steps` at once.
        value: What is put in: `"zero"`; `"mean"` over the reference runs and over all positions,
            at the same step; `"resample"`: the value of a reference run, at the same step.
            Positions are tokens, those of padding among them; the rows (`query`) of attention,
            not its columns; height, width and frames where latents or feature maps have these.
        others: Prompts of the reference runs, which start from the samples' noise. For
            `"resample"` sample number i takes the prompt of number i, from the first on again where
            there are fewer. Without any, the reference is the prompt itself: the mean of its
            samples, or the next sample's value (the last takes the first's). A mean needs as many
            prompts as samples or more, or a divisor of their number: each counts alike.
        metric: Any function of an `Outcome` that gives one number for each of its rows. Here the
            outcome has no source of its own: `.source` and `.base` both are the intact run's.
        seeds: How many samples, with the seeds from 0 on, or the seed of each; None as for
            `activation_patching`.
        steps: Steps at which to ablate where a Site does not say it; None for all.
        window: With `"step"` among the axes, how many steps are ablated from each step on.
        positions: Along `"pos"`: words of the prompt, or positions; None for all words.
        branch: Guidance branch to ablate where a Site does not say it; None for each.
        batch_size: Rows of a batch, of the reference runs, too; ablated runs take at least one part
            in all samples at once. More does not change results but for rounding.
        restart: Begin runs where they are first ablated; changes no more than rounding.
        level: Share of the bootstrap's means inside the interval.
        resume: Keep scores in this folder, and go on from those that lie there.
        show_progress: Show a bar with the time left.
        **settings: Arguments of the pipeline's own call, for all runs.

    Returns:
        Effects: the metric of the ablated runs minus that of the intact ones, in its units.

    Raises:
        PatchingError: If there is nothing to take values from, the metric says nothing of intact
            runs, or as for `activation_patching`.

    Source: zero and mean ablation as for language models (Michel et al., arXiv 1905.10650; Wang et
    al., arXiv 2211.00593), resampling as in Chan et al., causal scrubbing, 2022. For diffusion
    models, at every step of whole runs, it is ours.
    """
    refuse_unknown("value", value, VALUES, error=PatchingError)
    steps = refuse_impossible(metric, steps, batch_size=batch_size, level=level)
    pair = Pair.of(
        prompt,
        prompt,
        direction="noise",
        seeds=seeds,
        settings=settings,
        repeats=repeats_of(model),
    )
    prompts = (others,) if isinstance(others, str) else tuple(others)
    donor = _donor(value, References(prompts, batch_size), pair)
    grid, about = laid_out(
        model, pair, sites=sites, axes=axes, positions=positions, branch=branch, metric=metric
    )
    about = {name: about[name] for name in about if name not in ("clean", "corrupted", "direction")}
    about |= {"run": pair.about()["clean"], "value": value, "others": list(prompts)}
    about |= {"steps": steps, "restart": restart, "window": window if "step" in axes else None}
    decide = {name: about[name] for name in DECIDE}
    kept = kept_in(resume, model, pair, grid, metric=metric, decide=decide)
    sweep = Sweep(
        model=model,
        pair=pair,
        plan=grid,
        metric=metric,
        steps=steps,
        batch_size=batch_size,
        restart=restart,
        kept=kept,
        show_progress=show_progress,
        doing="ablation",
        unit="ablations",
    )
    with quiet(model.pipe), torch.no_grad():
        board = whole_runs(sweep, donor=donor, window=about["window"])
    intact = board.scores[-1]
    _refuse_no_score(metric, intact)
    found = gathered(
        board.scores[:-2] - intact,
        places=[cell.index for cell in grid.cells],
        axes=axes,
        labels=grid.labels,
        steps=board.steps,
        level=level,
    )
    left_out = dict(grid.left_out)
    return AblationResult(
        **found, seeds=pair.seeds, base=intact, left_out=left_out, value=value, made_by=about
    )


def _donor(value: str, references: References, pair: Pair) -> Donor:
    others, samples = references.prompts, len(pair.seeds)
    if value == "zero":
        if others:
            raise PatchingError("value='zero' takes nothing from others=; leave it out")
        return Zeros()
    if not others and value == "resample" and samples < 2:
        raise PatchingError(
            "value='resample' needs other samples to take values from, and there is one: give "
            "seeds=2 or more, or the prompts of other runs as others="
        )
    if value == "resample" and len(others) > samples:
        raise PatchingError(
            f"others= has {len(others)} prompts for {samples} samples, which take one each; give "
            f"seeds={len(others)}, or fewer prompts"
        )
    if others and not pair.base.run.prompts:
        raise PatchingError(
            "others= needs a run whose prompt is words, not embeddings, to take its place"
        )
    further = [name for name in ("prompt_2", "prompt_3") if pair.base.run.settings.get(name)]
    if others and further:
        raise PatchingError(
            f"others= takes the place of the whole prompt, and the run has {further[0]}= besides, "
            "which reference runs would go on reading; leave it out"
        )
    if value == "mean" and others and max(samples, len(others)) % len(others):
        raise PatchingError(
            f"value='mean' over {len(others)} prompts with {samples} samples would weigh the first "
            f"prompts more; give a multiple of {len(others)} seeds, or at least as many prompts"
        )
    return MeanOfRuns(references) if value == "mean" else ValuesOfRuns(references)


def _refuse_no_score(metric: Metric, intact: torch.Tensor) -> None:
    if intact.isnan().all():
        raise PatchingError(
            f"the metric {metric!r} gives nan for every intact run: it may compare with a source, "
            "which ablations have not. Take one that compares with the base, such as "
            "latent_distance, or one of images alone, such as graded"
        )
