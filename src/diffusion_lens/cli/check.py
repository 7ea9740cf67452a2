"""`diffusion-lens check`."""

from __future__ import annotations

from typing import Annotated

import typer

from diffusion_lens.cli.command import Call, command
from diffusion_lens.cli.loading import settings_of
from diffusion_lens.cli.messages import pipeline_messages


@command(shared=("setting", "device", "torch_dtype"))
def check(
    call: Call,
    points: Annotated[
        list[str] | None,
        typer.Option(help="Which hook points get forwards of their own. Repeatable."),
    ] = None,
) -> None:
    """Check that a model's names, axes, heads and streams are what they are called."""
    from diffusion_lens.testing import capture_inputs, check_pipeline, inspect_architecture

    prompts = ["a red circle", "a blue square"]
    given = ["num_inference_steps=1", *(call.setting or ())]
    settings = settings_of(call.name, call.model.pipe, given)
    if isinstance(settings.get("negative_prompt"), str):
        settings["negative_prompt"] = [settings["negative_prompt"]] * len(prompts)
    with pipeline_messages(call.model):
        denoiser, inputs = capture_inputs(call.model.pipe, prompt=prompts, **settings)
    report = inspect_architecture(denoiser, inputs, points=points)
    typer.echo(str(report))
    if not report.ok:
        raise typer.Exit(1)
    with pipeline_messages(call.model):
        asked = settings_of(call.name, call.model.pipe, call.setting)
        left_open = check_pipeline(call.model.pipe, **asked)
    typer.echo("branches, timesteps, grid and words are those of a run of the pipeline")
    for one in left_open:
        typer.echo(f"not checked: {one}")
