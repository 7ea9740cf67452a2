"""`diffusion-lens demo`."""

from __future__ import annotations

from pathlib import Path

import typer

from diffusion_lens.cli.command import command
from diffusion_lens.cli.messages import fail
from diffusion_lens.cli.options import Out

NEEDED = ("shapes-unet", "shapes-mmdit")


@command()
def demo(out: Out = Path("diffusion_lens_demo")) -> None:
    """Measure and intervene on the shipped toy models, on a CPU, and write a report."""
    from diffusion_lens import toys

    missing = [name for name in NEEDED if name not in toys.names()]
    if missing:
        fail(
            f"the demo needs the toy model {missing[0]!r}, whose weights are not in this "
            f"installation (toy models found: {', '.join(toys.names()) or 'none'}). Install a "
            "release, or a clone with its weights.",
            code=1,
        )
    typer.echo("Loading. Everything runs on the CPU; no download.")
    from diffusion_lens.app.demo import run_demo

    made = run_demo(out, tell=lambda text: typer.echo(text))
    typer.echo(f"\nDone in {made.seconds:.0f} s. Open {made.page.resolve()}\n")
    for number in made.numbers:
        typer.echo(f"  {number.value:>7}  {number.meaning}")
