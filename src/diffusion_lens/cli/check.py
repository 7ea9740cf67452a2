"""`diffusion-lens check`."""

from __future__ import annotations

from typing import Annotated

import typer

from diffusion_lens.cli.loading import load, settings_of
from diffusion_lens.cli.messages import messages, pipeline_messages
from diffusion_lens.cli.options import Device, Dtype, Model, Setting


def check(
    model: Model,
    points: Annotated[
        list[str] | None,
        typer.Option(help="Which hook points get forwards of their own. Repeatable."),
    ] = None,
    setting: Setting = None,
    device: Device = None,
    torch_dtype: Dtype = None,
) -> None:
    """Check that a model's names, axes, heads and streams are what they are called."""
    with messages():
        held = load(model, device=device, torch_dtype=torch_dtype)

        from diffusion_lens.testing import capture_inputs, inspect_architecture

        call = {"prompt": ["a red circle", "a blue square"]}
        settings = settings_of(model, held.pipe, ["num_inference_steps=1", *(setting or ())])
        if isinstance(settings.get("negative_prompt"), str):
            settings["negative_prompt"] = [settings["negative_prompt"]] * len(call["prompt"])
        with pipeline_messages(held):
            denoiser, inputs = capture_inputs(held.pipe, **call, **settings)
        report = inspect_architecture(denoiser, inputs, points=points)
    typer.echo(str(report))
    if not report.ok:
        raise typer.Exit(1)
