"""`diffusion-lens hrv build`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from diffusion_lens.border import Count
from diffusion_lens.cli.checks import folder, one_of, within, writable
from diffusion_lens.cli.command import Call, command
from diffusion_lens.cli.folders import Finding
from diffusion_lens.cli.loading import prompts_in, text_of
from diffusion_lens.cli.messages import fail
from diffusion_lens.cli.options import (
    Seed,
    Steps,
)

VOTES = ("argmax", "margin", "strength")


@command(out="diffusion_lens_hrv")
def build(
    call: Call,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Text file, a prompt in each line. Toys have their own.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    concepts: Annotated[
        Path | None,
        typer.Option(
            help="JSON file, concept to words, such as "
            '{"Colour": ["red", "blue"], "Shape": ["circle", "square"]}. '
            "The paper's 34 by default, for toys their own.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    include_start_token: Annotated[bool, typer.Option(help="In the softmax.")] = True,
    vote: Annotated[
        str, typer.Option(help="argmax, margin or strength.", callback=one_of(*VOTES))
    ] = "argmax",
    seed: Seed = 0,
    batch_size: Annotated[int, typer.Option(help="Prompts at once.", callback=within(Count))] = 1,
    steps: Steps = None,
    per_step: Annotated[bool, typer.Option(help="Keep votes of every step apart.")] = True,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Folder to go on from.", metavar="FOLDER", parser=folder, callback=writable
        ),
    ] = None,
) -> Finding:
    """Count which concept each head attends to most."""
    listed = _prompts(call, prompts)
    voted = _concepts(call, concepts)

    from diffusion_lens.analyses import head_relevance

    relevance = call.run(
        head_relevance,
        listed,
        concepts=voted,
        include_start_token=include_start_token,
        vote=vote,
        seed=seed,
        batch_size=batch_size,
        steps=call.steps(steps),
        per_step=per_step,
        checkpoint=checkpoint,
    )
    return Finding(
        "Head relevance", relevance, [relevance.plot()], rows=_vectors(relevance), by="relevance"
    )


def _prompts(call: Call, file: Path | None) -> list[str]:
    if file is not None:
        return prompts_in(file, "--prompts")
    if not call.is_toy:
        fail("give --prompts FILE, a prompt in each line; the paper takes 2,100, many and varied")
    from diffusion_lens import toys

    return [one.caption for one in toys.test_captions()][::5]


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of a name that comes twice JSON would keep the last value and say nothing."""
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        fail(f"--concepts: {twice!r} comes twice; give each concept once")
    return dict(pairs)


def _concepts(call: Call, file: Path | None) -> Any:
    if file is not None:
        from diffusion_lens.analyses.head_relevance.words import checked_concepts

        try:
            given = json.loads(text_of(file), object_pairs_hook=_each_once)
        except (ValueError, RecursionError) as error:
            fail(f"--concepts {file} is no JSON: {error}")
        return checked_concepts(given)
    if call.is_toy:
        from diffusion_lens.toys.shapes.world import CONCEPTS

        return CONCEPTS
    from diffusion_lens.analyses import PUBLISHED_CONCEPTS

    return PUBLISHED_CONCEPTS


def _vectors(relevance: Any) -> list[dict[str, Any]]:
    return [
        {"concept": concept, "block": head.block, "head": head.head, "relevance": float(value)}
        for concept, vector in zip(relevance.concepts, relevance.vectors, strict=True)
        for head, value in zip(relevance.heads, vector, strict=True)
    ]
