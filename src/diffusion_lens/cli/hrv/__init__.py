"""`diffusion-lens hrv`: head relevance vectors; build, show, weaken, steer."""

import typer

from diffusion_lens.cli.hrv.build import build
from diffusion_lens.cli.hrv.show import show
from diffusion_lens.cli.hrv.steer import steer
from diffusion_lens.cli.hrv.weaken import weaken

hrv = typer.Typer(
    help="Head relevance vectors: which attention heads matter for which concept.",
    no_args_is_help=True,
)
for command in (build, show, weaken, steer):
    hrv.command()(command)
