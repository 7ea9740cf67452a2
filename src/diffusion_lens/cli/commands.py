"""Every command by its name."""

from __future__ import annotations

import typer

from diffusion_lens.cli.attention_maps import attention_maps
from diffusion_lens.cli.check import check
from diffusion_lens.cli.cite import cite
from diffusion_lens.cli.concept_attention import concept_attention
from diffusion_lens.cli.demo import demo
from diffusion_lens.cli.edit import edit
from diffusion_lens.cli.excite import excite
from diffusion_lens.cli.hooks import hooks
from diffusion_lens.cli.hrv import hrv
from diffusion_lens.cli.patch import patch
from diffusion_lens.cli.run import run

app = typer.Typer(
    help="See, keep and edit what happens inside diffusion models. MODEL is a Hub id, a folder, or "
    "a toy model that ships with the package, such as toy:shapes-unet.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
COMMANDS = (
    demo,
    hooks,
    run,
    concept_attention,
    attention_maps,
    patch,
    edit,
    excite,
    check,
    cite,
)
for command in COMMANDS:
    app.command(command.__name__.replace("_", "-"))(command)
app.add_typer(hrv, name="hrv")


def main() -> None:
    """Run the command line."""
    app()
