"""`diffusion-lens excite`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from diffusion_lens.border import Index, Positive, Size
from diffusion_lens.cli.checks import within
from diffusion_lens.cli.command import Call, command
from diffusion_lens.cli.folders import Finding
from diffusion_lens.cli.hrv.saved import loaded
from diffusion_lens.cli.messages import fail
from diffusion_lens.cli.options import (
    Prompt,
    Seed,
)


@command()
def excite(
    call: Call,
    prompt: Prompt,
    words: Annotated[
        list[str], typer.Option(help="A word that must not be neglected. Repeatable.")
    ],
    relevance: Annotated[
        Path | None, typer.Option(help="Head relevance: what `hrv build` wrote.", exists=True)
    ] = None,
    concepts: Annotated[
        list[str] | None, typer.Option(help="The concept of each word, in order. Repeatable.")
    ] = None,
    step_size: Annotated[
        float, typer.Option(help="Of a move of the latents.", callback=within(Positive))
    ] = 20.0,
    max_iter_to_alter: Annotated[
        int,
        typer.Option(help="From which step on latents are left alone.", callback=within(Index)),
    ] = 25,
    refine: Annotated[
        bool, typer.Option(help="Move again and again at the published steps.")
    ] = True,
    resolution: Annotated[
        int | None, typer.Option(help="Shorter side of the maps.", callback=within(Size))
    ] = None,
    seed: Seed = 0,
) -> Finding:
    """Generate so that no named word is neglected (Attend-and-Excite), and without."""
    if (relevance is None) != (not concepts):
        fail("--relevance and --concepts go together: give both or none")
    more: dict[str, Any] = {} if refine else {"thresholds": {}}

    from diffusion_lens import HookedDiffusion, viz
    from diffusion_lens.analyses import attend_and_excite

    if relevance is not None:
        more["relevance"] = loaded(relevance)
    result = call.run(
        attend_and_excite,
        prompt,
        words=words,
        concepts=concepts,
        step_size=step_size,
        max_iter_to_alter=max_iter_to_alter,
        resolution=resolution,
        seed=seed,
        **more,
    )
    plain = call.run(HookedDiffusion.__call__, prompt, seed=seed)
    both = viz.image_strip([plain.images[0], result.image], captions=["plain", "excited"])
    return Finding(
        f"Excited: {prompt}",
        result,
        [both, result.plot()],
        rows=[
            {"step": step, "loss": float(loss)}
            for step, loss in zip(result.steps, result.losses, strict=True)
        ],
        pictures={"plain": plain.images, "excited": result.images},
    )
