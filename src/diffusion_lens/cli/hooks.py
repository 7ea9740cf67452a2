"""`diffusion-lens hooks`."""

from __future__ import annotations

from typing import Annotated

import typer

from diffusion_lens.cli.command import Call, command


@command(shared=())
def hooks(
    call: Call,
    pattern: Annotated[
        str, typer.Argument(help="Which names: * is one dotted part, ** any number of them.")
    ] = "**",
) -> None:
    """List a model's hook points: axes, sizes, native module, what is dead or absent and why."""
    typer.echo(str(call.model.hook_table(pattern)))
