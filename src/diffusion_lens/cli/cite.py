"""`diffusion-lens cite`."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer

from diffusion_lens.cli.command import command
from diffusion_lens.cli.messages import fail

ALWAYS = ("diffusion_lens", "diffusers")
ARXIV = re.compile(r"\b\d{4}\.\d{5}\b")


@command()
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
        run = folder / "run.json"
        if not found and not run.is_file():
            fail(f"{folder} holds no result; give a folder that a command wrote with --out")
        if run.is_file():
            _read(run, {"run": str})
        for file in found:
            about = _read(file, {"result": str, "fields": dict})
            behind = methods_behind(about["result"], about["fields"])
            keys += behind
            if not behind:
                others.append(f"% {about['result']}: {about['fields'].get('citation', '')}")
    known = entries()
    shown = [known[key] for key in dict.fromkeys(keys)] + list(dict.fromkeys(others))
    typer.echo("\n\n".join(shown).replace("VERSION", __version__))


def methods_behind(result: str, fields: dict[str, Any]) -> list[str]:
    """Keys of what a result rests on: those of its analysis, and what its `citation` names."""
    from diffusion_lens.analyses.registry import ROWS

    keys = [
        key
        for row in ROWS
        if row.result == result and fields.get("method", row.name) == row.name
        for key in row.cites
    ]
    numbers = ARXIV.findall(str(fields.get("citation", "")))
    keys += [key for key, entry in entries().items() if any(one in entry for one in numbers)]
    return list(dict.fromkeys(keys))


def _read(file: Path, holds: dict[str, type]) -> dict[str, Any]:
    """A JSON file that a command wrote, if it holds what they write."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        fail(f"{file} cannot be read ({error}); it was cut short or changed")
    if not isinstance(found, dict) or not all(isinstance(found.get(n), holds[n]) for n in holds):
        fail(f"{file} is no result of a command; give a folder that one wrote with --out")
    return found


def entries() -> dict[str, str]:
    """Every entry by its key."""
    text = resources.files("diffusion_lens.cli").joinpath("citations.bib").read_text("utf-8")
    every = text.strip().split("\n\n")
    return {entry.partition("{")[2].partition(",")[0]: entry for entry in every}
