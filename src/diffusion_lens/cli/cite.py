"""`diffusion-lens cite`."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from diffusion_lens.cli.messages import fail

ALWAYS = ("diffusion_lens", "diffusers")
CITED = {
    "ConceptMaps": ("helbling2025conceptattention",),
    "AttentionMaps": ("tang2023daam",),
    "HeadPatterns": ("raghu2021vision", "tang2023daam"),
    "HeadRelevance": ("park2025headrelevance",),
    "WeakeningCurves": ("park2025headrelevance",),
    "PatchingResult": ("vig2020causal", "meng2022rome", "basu2024localizing"),
}
"""For each result the entries of the methods behind it."""


def cite(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders with results; the methods that made them are cited, too."),
    ] = None,
) -> None:
    """Print BibTeX entries of this library, of diffusers, and of what made some results."""
    from diffusion_lens import __version__

    keys, others = list(ALWAYS), []
    for folder in folders or ():
        found = sorted(folder.rglob("result.json"))
        if not found and not (folder / "run.json").is_file():
            fail(f"{folder} holds no result; give a folder that a command wrote with --out")
        for file in found:
            about = json.loads(file.read_text(encoding="utf-8"))
            keys += CITED.get(about["result"], ())
            if about["result"] not in CITED:
                others.append(f"% {about['result']}: {about['fields'].get('citation', '')}")
    known = entries()
    shown = [known[key] for key in dict.fromkeys(keys)] + list(dict.fromkeys(others))
    typer.echo("\n\n".join(shown).replace("VERSION", __version__))


def entries() -> dict[str, str]:
    """Every entry by its key."""
    text = resources.files("diffusion_lens.cli").joinpath("citations.bib").read_text("utf-8")
    every = text.strip().split("\n\n")
    return {entry.partition("{")[2].partition(",")[0]: entry for entry in every}
