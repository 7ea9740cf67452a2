"""Activation patching: one generic loop over parts of hook points, in three modes.

Put values of a source run in the place of those of a base run, one part at a time, and see how far
the outcome moves from base to source. The published protocols are special cases: Basu et al.
(arXiv 2310.13730) restore one module at all steps of a run whose word embeddings were corrupted
(`mode="on-trajectory"`, `corrupted=WordNoise(...)`); direct effects of single evaluations are
`mode="teacher-forced"`; causal curves over steps are `mode="window"`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from diffusion_lens import HookedDiffusion, Run
from diffusion_lens.analyses.patching.corruption import WordNoise
from diffusion_lens.analyses.patching.donors import SourceRun
from diffusion_lens.analyses.patching.kept import kept_in
from diffusion_lens.analyses.patching.outcome import Metric
from diffusion_lens.analyses.patching.pair import Pair, repeats_of
from diffusion_lens.analyses.patching.result import PatchingResult
from diffusion_lens.analyses.patching.scores import latent_recovery
from diffusion_lens.analyses.patching.summary import (
    laid_out,
    refuse_impossible,
    summed_up,
)
from diffusion_lens.analyses.patching.sweep import Sweep
from diffusion_lens.analyses.patching.teacher_forced import teacher_forced
from diffusion_lens.analyses.patching.trajectory import whole_runs
from diffusion_lens.authoring import quiet
from diffusion_lens.border import Count, PipelineSetting, Positive, public
from diffusion_lens.errors import PatchingError, refuse_unknown
from diffusion_lens.hook_points import Sites

MODES = ("teacher-forced", "on-trajectory", "window")
DECIDE = ("direction", "seeds", "sites", "axes", "labels", "mode", "steps", "window", "restart")
"""What of a result's `made_by` decides on scores, besides runs, model and metric."""


@public
def activation_patching(
    model: HookedDiffusion,
    clean: str | Run,
    corrupted: str | Run | WordNoise,
    *,
    sites: Sites,
    axes: Sequence[str] = ("block",),
    metric: Metric = latent_recovery,
    mode: str = "teacher-forced",
    direction: str = "denoise",
    seeds: int | Sequence[int] | None = None,
    steps: int | Sequence[int] | None = None,
    window: Count = 1,
    positions: Sequence[str | int] | None = None,
    branch: str | None = "cond",
    batch_size: int = 16,
    restart: bool = True,
    level: float = 0.95,
    least: Positive = 1e-6,
    resume: str | Path | None = None,
    show_progress: bool = True,
    **settings: PipelineSetting,
) -> PatchingResult:
    """Patch one part after another and score what becomes of it.

    An effect shows that a part is *sufficient* in its place (`direction="denoise"`), or that it
    was *needed* (`"noise"`); the two disagree where parts stand in for each other. No effect alone
    does not mean no role. Patches at different steps do not add up.

    Args:
        model: The model.
        clean: Prompt or `Run` of the clean side.
        corrupted: That of the corrupted side, or noise on words of the clean one.
        sites: Names, patterns or Sites; everything that they select takes part. Heads, tokens,
            branch and steps that a Site names are those that are patched there.
        axes: What is patched apart: `"block"`, `"stream"`, `"attention"` (attn, cross_attn),
            `"point"` (the quantity), `"head"`, `"pos"` (words) and `"step"`. Parts with the same
            labels are patched together.
        metric: Any function of an `Outcome` that gives one number for each of its rows.
        mode: `"teacher-forced"`: each step by itself, both prompts on the clean trajectory;
            `"on-trajectory"`: whole runs, patched at all `steps`; `"window"`: whole runs, patched
            at `window` steps from each step on.
        direction: `"denoise"` puts clean values into the corrupted run, `"noise"` the reverse.
        seeds: How many samples, with the seeds from 0 on; or the seed of each, such as `[4]`. None
            stands for the seed or seeds that a Run was given, for one sample of each of given
            latents, else for eight samples. A single sample has no interval: it is nan.
        steps: Steps to patch where a Site does not say it; None for all.
        window: Steps of one window, out of those at which something is patched.
        positions: Along `"pos"`: words of the base's prompt, or positions; None for all words.
        branch: Guidance branch to patch where a Site does not say it; None for each.
        batch_size: Rows of a batch. More does not change results but for rounding.
        restart: Start patched evaluations in the middle, and patched runs at the first patched
            step. It changes results no more than rounding.
        level: Share of the bootstrap's means inside the interval.
        least: Samples in which source and base score closer to each other are dropped.
        resume: Keep scores in this folder, and go on from those that lie there. They are refused
            if anything differs that they depend on: prompts, settings, weights, precision,
            scheduler, sites, metric, versions. What a metric reads from globals is not noticed.
        show_progress: Show a bar with the time left.
        **settings: Arguments of the pipeline's own call, for both runs.

    Returns:
        Effects, normalised so that 0 is the base and 1 the source.

    Raises:
        PatchingError: If the runs make no pair, prompts cannot be aligned, sites, axes, mode,
            steps and metric do not fit together, or `resume` holds another sweep or damaged files.

    Source: Basu et al., arXiv 2310.13730, section 3; normalised recovery as in language models.
    Differs: samples are seeds, the interval is a bootstrap over them.
    """
    _refuse_unknown_mode(mode, axes)
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
        model, pair, sites=sites, axes=axes, positions=positions, branch=branch, metric=metric
    )
    about |= {"mode": mode, "steps": steps, "restart": restart}
    about |= {"window": window if mode == "window" else None}
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
    )
    with quiet(model.pipe), torch.no_grad():
        if mode == "teacher-forced":
            board = teacher_forced(sweep)
        else:
            board = whole_runs(sweep, donor=SourceRun(), window=about["window"])
    return summed_up(board, grid, pair, axes=axes, level=level, least=least, about=about)


def _refuse_unknown_mode(mode: str, axes: Sequence[str]) -> None:
    refuse_unknown("mode", mode, MODES, error=PatchingError)
    if mode == "on-trajectory" and "step" in axes:
        raise PatchingError(
            "on a trajectory all steps are patched in one run, so that there is no effect of a "
            "single step; use mode='window' or 'teacher-forced'"
        )
    if mode == "window" and "step" not in axes:
        raise PatchingError("mode='window' patches steps apart: put 'step' among the axes")


patch_residuals = partial(
    activation_patching, sites="blocks.*.*.hook_resid_post", axes=("block", "stream")
)
"""Each residual stream as it leaves each block."""

patch_attention = partial(
    activation_patching, sites=["blocks.*.*.hook_*attn_out"], axes=("block", "point")
)
"""The raw output of each attention."""

patch_mlps = partial(activation_patching, sites="blocks.*.*.hook_mlp_out", axes=("block", "stream"))
"""The raw output of each MLP."""

patch_heads = partial(
    activation_patching, sites="blocks.*.*.*.hook_z", axes=("block", "attention", "head")
)
"""Each head's z, of all streams that it serves."""

patch_words = partial(activation_patching, sites="hook_text_emb", axes=("pos",))
"""Each word of the text embedding."""

patch_steps = partial(activation_patching, sites="hook_text_emb", axes=("step",), mode="window")
"""The text embedding in each window of steps: when does the prompt matter?"""
