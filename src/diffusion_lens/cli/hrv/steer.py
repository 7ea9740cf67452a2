"""`diffusion-lens hrv steer`."""

from __future__ import annotations

from typing import Annotated

import typer

from diffusion_lens.border import Positive
from diffusion_lens.cli.checks import within
from diffusion_lens.cli.command import Call, command
from diffusion_lens.cli.folders import Drawing
from diffusion_lens.cli.hrv.saved import Relevance, loaded
from diffusion_lens.cli.messages import fail
from diffusion_lens.cli.options import (
    Seed,
    Steps,
)


@command()
def steer(
    call: Call,
    relevance: Relevance,
    prompt: Annotated[str, typer.Argument(help="What to generate.")],
    word: Annotated[str, typer.Option(help="A word or phrase of the prompt.")],
    desired: Annotated[str, typer.Option(help="The concept that the word should mean.")],
    undesired: Annotated[
        str | None, typer.Option(help="The concept that it should not mean.")
    ] = None,
    clamp: Annotated[
        float | None,
        typer.Option(help="Largest element of a vector.", callback=within(Positive)),
    ] = None,
    steps: Steps = None,
    seed: Seed = 0,
) -> Drawing:
    """Generate with a word turned towards one of its meanings, and without."""
    if desired == undesired:
        fail(f"--desired and --undesired are both {desired!r}; give two concepts, or one")
    vectors = loaded(relevance)

    from diffusion_lens import HookedDiffusion
    from diffusion_lens.analyses import steer_word

    steered = call.run(
        steer_word,
        prompt,
        word,
        vectors,
        desired=desired,
        undesired=undesired,
        clamp=clamp,
        steps=call.steps(steps),
        seed=seed,
    )
    plain = call.run(HookedDiffusion.__call__, prompt, seed=seed)
    return Drawing(
        steered.made_by.as_dict(),
        {"plain": plain.images, "steered": steered.images},
        title=f"Steering: {prompt}",
        citation=vectors.citation,
    )
