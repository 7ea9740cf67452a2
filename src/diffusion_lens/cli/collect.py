"""`diffusion-lens collect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffusion_lens.border import Count
from diffusion_lens.cli.checks import one_of, within
from diffusion_lens.cli.command import Call, command
from diffusion_lens.cli.loading import prompts_in, seeds_of
from diffusion_lens.cli.messages import fail
from diffusion_lens.cli.options import AnyBranch, Sites, Steps, SweepSeeds

DTYPES = ("float32", "bfloat16", "float16")


@command()
def collect(
    call: Call,
    prompts: Annotated[
        Path,
        typer.Argument(help="Text file, a prompt in each line.", exists=True, dir_okay=False),
    ],
    sites: Sites,
    steps: Steps = None,
    branch: AnyBranch = "cond",
    tokens: Annotated[
        str, typer.Option(help="all, how many of each image, or a grid: grid:8x8.")
    ] = "all",
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Precision of the rows: float32, bfloat16 or float16; the model's by default.",
            callback=one_of(*DTYPES),
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images at once.", callback=within(Count))] = 1,
    seeds: SweepSeeds = "1",
    shard: Annotated[
        str | None, typer.Option(help="Process i, from 0, of n on one folder: 0/4.")
    ] = None,
    images: Annotated[bool, typer.Option("--images", help="Keep the images, too.")] = False,
    latents: Annotated[
        bool, typer.Option("--latents", help="Keep the final latents, too.")
    ] = False,
) -> None:
    """Write activations of many prompts to a folder. The same call again goes on."""
    listed = prompts_in(prompts, "PROMPTS")
    share = _share(shard)
    chosen = seeds_of(seeds)

    import torch

    from diffusion_lens import activations

    store = call.run(
        activations.collect,
        listed,
        sites=sites,
        out=call.out,
        steps=call.steps(steps),
        branch=branch,
        tokens=int(tokens) if tokens.isdecimal() else tokens,
        dtype=None if dtype is None else getattr(torch, dtype),
        batch_size=batch_size,
        seeds=chosen,
        shard=share,
        images=images,
        latents=latents,
    )
    typer.echo(f"{store!r} is in {call.out}")


def _share(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal()):
        fail(f"--shard {text!r}: give the number of this process, from 0, and how many: 0/4")
    return int(number), int(count)
