"""`diffusion-lens run`."""

from __future__ import annotations

from typing import Annotated

import typer

from diffusion_lens.cli.checks import refuse_unread
from diffusion_lens.cli.command import Call, command
from diffusion_lens.cli.folders import Drawing
from diffusion_lens.cli.options import (
    Prompt,
    Seed,
)


@command()
def run(
    call: Call,
    prompt: Prompt,
    seed: Seed = 0,
    cache: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SITE",
            help="Keep this hook point; a name, a pattern or a Site's text form. Repeatable.",
        ),
    ] = None,
    branch: Annotated[
        str | None,
        typer.Option(help="Which guidance branch to keep: cond (the default), uncond or all."),
    ] = None,
    reduce: Annotated[
        str | None, typer.Option(help="Keep the mean, sum or last over steps, not every step.")
    ] = None,
) -> Drawing:
    """Generate an image, and keep what made it (run.json) and hook points (--cache)."""
    of_cache = {"--branch": branch, "--reduce": reduce}
    refuse_unread(of_cache, unless="--cache", read=bool(cache))

    from diffusion_lens import HookedDiffusion

    if not cache:
        output = call.run(HookedDiffusion.__call__, prompt, seed=seed)
        return Drawing(output.made_by.as_dict(), {"image": output.images})
    output, kept = call.run(
        HookedDiffusion.run_with_cache,
        prompt,
        seed=seed,
        names_filter=cache,
        branch="cond" if branch is None else branch,
        reduce=reduce,
    )
    typer.echo(f"{kept!r} is in {kept.save(call.out / 'cache')}")
    return Drawing(output.made_by.as_dict(), {"image": output.images})
