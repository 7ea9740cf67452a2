"""`diffusion-lens describe`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffusion_lens.cli.command import Call, command
from diffusion_lens.cli.messages import fail
from diffusion_lens.cli.settings import pair
from diffusion_lens.showing.one_line import counted
from diffusion_lens.whole_files import write_whole


@command(shared=("setting", "device", "torch_dtype"))
def describe(
    call: Call,
    out: Annotated[
        Path | None,
        typer.Option(help="File for the description, which is printed otherwise.", metavar="FILE"),
    ] = None,
) -> None:
    """Write the description of a model's architecture, from two short runs of it."""
    from diffusion_lens.describing import ask_pipeline, family_file
    from diffusion_lens.describing import describe as read
    from diffusion_lens.engine.denoisers import denoiser_of

    denoiser = denoiser_of(call.pipeline)
    if denoiser is None:
        fail(f"{call.name} has no denoiser; give a text-to-image or text-to-video pipeline")
    asked = ask_pipeline(call.pipeline, denoiser, dict(map(pair, call.setting or [])))
    text = family_file(read(denoiser, asked.inputs), asked.answers)
    if out is None:
        typer.echo(text)
    else:
        write_whole(out, text)
    typer.echo(f"{counted(text.count('todo('), 'question')} left to answer", err=True)
