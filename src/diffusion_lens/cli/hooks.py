"""`diffusion-lens hooks`."""

from __future__ import annotations

from typing import Annotated

import typer

from diffusion_lens.cli.loading import load
from diffusion_lens.cli.messages import messages
from diffusion_lens.cli.options import Model


def hooks(
    model: Model,
    pattern: Annotated[
        str, typer.Argument(help="Which names: * is one dotted part, ** any number of them.")
    ] = "**",
) -> None:
    """List a model's hook points: axes, sizes, native module, what is dead or absent and why."""
    with messages():
        typer.echo(str(load(model).hook_table(pattern)))
