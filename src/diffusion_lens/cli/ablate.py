"""`diffusion-lens ablate`."""

from __future__ import annotations

from typing import Annotated

import typer

from diffusion_lens.cli.ablated_run import ablated_images
from diffusion_lens.cli.best_part import best_label
from diffusion_lens.cli.checks import one_of, refuse_unread
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

METRICS = ("latent_distance", "graded")
PUT_IN = {"zero": "zeros", "mean": "the mean", "resample": "another run's value"}


@command()
def ablate(
    call: Call,
    prompt: Annotated[str, typer.Argument(help="The prompt whose run is ablated.")],
    sites: Sites = ["blocks.*.*.*.hook_z"],  # noqa: B006 (typer copies it)
    axes: Annotated[
        list[str],
        typer.Option(help="What is ablated apart: block, stream, head, pos, step … Repeatable."),
    ] = ["block"],  # noqa: B006
    value: Annotated[
        str,
        typer.Option(
            help="What is put in: zero, mean (over runs and positions) or resample.",
            callback=one_of(*PUT_IN),
        ),
    ] = "zero",
    others: Annotated[
        list[str] | None,
        typer.Option(help="Prompts that mean and resample take values from. Repeatable."),
    ] = None,
    metric: Annotated[
        str, typer.Option(help=f"{', '.join(METRICS)}; the last for toy models only.")
    ] = "latent_distance",
    part: Annotated[
        str | None,
        typer.Option(help="For the metric graded: which part of the prompt; all of it."),
    ] = None,
    seeds: SweepSeeds = "8",
    steps: Annotated[
        str | None, typer.Option(help="Steps to ablate: 3, 3,5 or 0:8; all by default.")
    ] = None,
    window: Window = None,
    positions: Positions = None,
    branch: AnyBranch = "cond",
    batch_size: BatchSize = 16,
) -> Finding:
    """Take out one part after another, and score how far the run moves."""
    refuse_unknown_metric(metric, METRICS, of_toy=call.is_toy)
    refuse_unread({"--part": part}, unless="--metric graded", read=metric == "graded")
    refuse_unread(
        {"--others": others or None}, unless="--value mean or resample", read=value != "zero"
    )
    refuse_unread({"--window": window}, unless="--axes step", read="step" in axes)
    refuse_unread({"--positions": positions or None}, unless="--axes pos", read="pos" in axes)

    from diffusion_lens.analyses import ablation_sweep

    more = {
        "value": value,
        "others": others or (),
        "steps": call.steps(steps, each=True),
        "window": window or 1,
        "positions": positions or None,
        "branch": None if branch == "all" else branch,
        "batch_size": batch_size,
    }
    result = call.run(
        ablation_sweep,
        prompt,
        sites=sites,
        axes=axes,
        metric=metric_of(metric, prompt, part),
        seeds=seeds_of(seeds),
        **more,
    )
    typer.echo(str(result))
    drawn = call.run(ablated_images, prompt, result=result, sites=sites, **more)
    where = best_label(result)
    captions = {
        "intact": f"intact: {prompt}",
        "ablated": f"with {PUT_IN[value]} at {where}" if where else f"with {PUT_IN[value]}",
    }
    return Finding(
        f"Ablation: “{prompt}”",
        result,
        [result.plot()],
        rows=result.top(max(1, result.effects.numel())),
        pictures={name: [image] for name, image in drawn.items()},
        captions=captions,
    )
