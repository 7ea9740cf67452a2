"""`diffusion-lens patch`."""

from __future__ import annotations

from typing import Annotated

import typer

from diffusion_lens.cli.best_part import best_label
from diffusion_lens.cli.checks import refuse_unread
from diffusion_lens.cli.command import Call, command
from diffusion_lens.cli.folders import Finding
from diffusion_lens.cli.loading import seeds_of
from diffusion_lens.cli.metric import metric_of, refuse_unknown_metric
from diffusion_lens.cli.options import (
    AnyBranch,
    BatchSize,
    Positions,
    Sites,
    SweepSeeds,
    Window,
)
from diffusion_lens.cli.patched_run import WHOLE_RUN, patched_images

METRICS = ("latent_recovery", "latent_projection", "x0_distance", "graded")


@command()
def patch(
    call: Call,
    clean: Annotated[str, typer.Argument(help="The prompt whose values are put in.")],
    corrupted: Annotated[str, typer.Argument(help="The prompt whose run is patched.")],
    sites: Sites = ["blocks.*.*.hook_resid_post"],  # noqa: B006 (typer copies it)
    axes: Annotated[
        list[str],
        typer.Option(help="What is patched apart: block, stream, head, pos, step … Repeatable."),
    ] = ["block"],  # noqa: B006
    metric: Annotated[
        str, typer.Option(help=f"{', '.join(METRICS)}; the last for toy models only.")
    ] = "latent_recovery",
    part: Annotated[
        str | None,
        typer.Option(help="For the metric graded: which part of the clean caption; all of it."),
    ] = None,
    mode: Annotated[
        str, typer.Option(help="teacher-forced, on-trajectory or window.")
    ] = "teacher-forced",
    direction: Annotated[str, typer.Option(help="denoise or noise.")] = "denoise",
    seeds: SweepSeeds = "8",
    steps: Annotated[
        str | None, typer.Option(help="Steps to patch: 3, 3,5 or 0:8; all by default.")
    ] = None,
    window: Window = None,
    positions: Positions = None,
    branch: AnyBranch = "cond",
    batch_size: BatchSize = 16,
) -> Finding:
    """Put parts of one run in the place of those of another, and score what changes."""
    refuse_unknown_metric(metric, METRICS, of_toy=call.is_toy)
    refuse_unread({"--part": part}, unless="--metric graded", read=metric == "graded")
    refuse_unread({"--window": window}, unless="--mode window", read=mode == "window")
    refuse_unread({"--positions": positions or None}, unless="--axes pos", read="pos" in axes)

    from diffusion_lens.analyses.patching import activation_patching

    at = call.steps(steps, each=True)
    result = call.run(
        activation_patching,
        clean,
        corrupted,
        sites=sites,
        axes=axes,
        metric=metric_of(metric, clean, part),
        mode=mode,
        direction=direction,
        seeds=seeds_of(seeds),
        steps=at,
        window=window or 1,
        positions=positions,
        branch=None if branch == "all" else branch,
        batch_size=batch_size,
    )
    typer.echo(str(result))
    drawn = call.run(
        patched_images,
        clean,
        corrupted,
        result=result,
        sites=sites,
        direction=direction,
        branch=None if branch == "all" else branch,
        steps=at,
        window=window or 1,
        positions=positions or None,
    )
    captions = {"clean": f"clean: {clean}", "corrupted": f"corrupted: {corrupted}"}
    captions["patched"] = f"patched, in a whole run, at {best_label(result)}"
    said = [WHOLE_RUN] if mode == "teacher-forced" else []
    return Finding(
        f"Patching: “{clean}” into “{corrupted}”",
        result,
        [*(said if drawn else ()), result.plot()],
        rows=result.records(),
        by="effect",
        pictures={name: [image] for name, image in drawn.items()},
        captions=captions,
    )
