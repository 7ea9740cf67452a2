"""`diffusion-lens hrv show`."""

from __future__ import annotations

from typing import Annotated

import typer

from diffusion_lens.border import Count
from diffusion_lens.cli.checks import within
from diffusion_lens.cli.command import command
from diffusion_lens.cli.hrv.saved import Relevance, loaded


@command()
def show(
    relevance: Relevance,
    concept: Annotated[
        list[str] | None, typer.Option(help="Only these concepts. Repeatable.")
    ] = None,
    top: Annotated[int, typer.Option(help="How many heads of each.", callback=within(Count))] = 5,
) -> None:
    """Print the most relevant heads of each concept, and how often the concept won."""
    found = loaded(relevance)
    typer.echo(repr(found))
    shares = found.vote_share if found.votes is not None else {}
    for name in concept or found.concepts:
        vector = found.vector(name)
        best = ", ".join(
            f"({block},{head}) {float(vector[at]):.2f}"
            for at in found.order(name)[:top]
            for block, head in [found.heads[at][:2]]
        )
        share = f"{100 * shares[name]:5.1f} % of votes" if shares else ""
        typer.echo(f"{name:<24} {share}  (block,head) relevance: {best}")
