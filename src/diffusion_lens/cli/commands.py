"""Every command by its name."""

from __future__ import annotations

from diffusion_lens.cli.command import application

COMMANDS = (
    "demo",
    "hooks",
    "run",
    "collect",
    "concept_attention",
    "attention_maps",
    "patch",
    "ablate",
    "edit",
    "excite",
    "check",
    "describe",
    "cite",
)
HRV = ("build", "show", "weaken", "steer")

app = application(
    "See, keep and edit what happens inside diffusion models. MODEL is a Hub id, a folder, or "
    "a toy model such as toy:shapes-unet, which ships with the package.",
    "diffusion_lens.cli",
    COMMANDS,
)
hrv = application(
    "Head relevance vectors: which attention heads matter for which concept.",
    "diffusion_lens.cli.hrv",
    HRV,
)
app.add_typer(hrv, name="hrv", short_help=hrv.info.help)


def main() -> None:
    """Run the command line."""
    app()
