"""`diffusion-lens concept-attention`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffusion_lens.cli.command import Call, command
from diffusion_lens.cli.folders import Finding, named
from diffusion_lens.cli.given_image import given_image, refuse_unread_of_image
from diffusion_lens.cli.loading import listed_numbers, whole_numbers
from diffusion_lens.cli.options import (
    Blocks,
    Branch,
    Image,
    Keep,
    NoiseLevel,
    PromptOrCaption,
    Samples,
    Seed,
    Steps,
)

if TYPE_CHECKING:
    from diffusion_lens.analyses import ConceptMaps


@command()
def concept_attention(
    call: Call,
    prompt: PromptOrCaption,
    concepts: Annotated[
        list[str],
        typer.Option(
            help="A word or phrase to look for. Repeatable; give several, such as "
            '--concepts "red circle" --concepts background.'
        ),
    ],
    preset: Annotated[
        str,
        typer.Option(
            help="Which published way: paper, flux-release, flux-diffusers, sd3, cogvideox or "
            "flux2."
        ),
    ] = "paper",
    space: Annotated[
        str | None,
        typer.Option(help="z, attn_out, value, query-key or query-query; the preset's by default."),
    ] = None,
    softmax_over: Annotated[
        str | None,
        typer.Option(help="concepts, patches or nothing; the preset's by default."),
    ] = None,
    blocks: Blocks = None,
    steps: Steps = None,
    keep: Keep = None,
    branch: Branch = "cond",
    image: Image = None,
    noise_level: NoiseLevel = None,
    num_samples: Samples = None,
    seed: Seed = 0,
) -> Finding:
    """Map where a model sees concepts in an image (ConceptAttention)."""
    refuse_unread_of_image(call, image, noise_level=noise_level, num_samples=num_samples)

    from diffusion_lens.analyses import concept_attention as analysis

    maps = call.run(
        analysis,
        prompt,
        concepts=concepts,
        preset=preset,
        space=space,
        softmax_over=softmax_over,
        blocks=listed_numbers(blocks, "blocks"),
        steps=call.steps(steps) if image is None else whole_numbers(steps, "steps"),
        keep=keep or (),
        branch=branch,
        image=None if image is None else given_image(call, image),
        noise_level=noise_level,
        num_samples=num_samples or 1,
        seed=seed,
    )
    return Finding(
        f"ConceptAttention: {prompt}",
        maps,
        [maps.plot(upsample="bilinear")],
        rows=_rows(maps),
        pictures={"image": maps.images or (), **_drawn(maps)},
    )


def _drawn(maps: ConceptMaps) -> dict[str, list[Any]]:
    """Each concept's map over the image."""
    from diffusion_lens import viz

    means = _means(maps)
    if means.ndim != 3 or maps.images is None:
        return {}
    ends = (float(means.min()), float(means.max()))
    drawn = [viz.overlay_image(maps.images[0], one, zmin=ends[0], zmax=ends[1]) for one in means]
    return named("concept", maps.concepts, drawn)


def _rows(maps: ConceptMaps) -> list[dict[str, Any]]:
    means = _means(maps)
    largest = means.argmax(0)
    return [
        {
            "concept": concept,
            "mean": float(means[number].mean()),
            "largest": float(means[number].max()),
            "share of places where it is largest": float((largest == number).float().mean()),
        }
        for number, concept in enumerate(maps.concepts)
    ]


def _means(maps: ConceptMaps) -> Any:
    """Maps of the first image by concept; steps and blocks averaged."""
    found = maps.maps[0].float()
    for axis in ("block", "step"):
        if axis in maps.axes:
            found = found.mean(maps.axes.index(axis) - 1)
    return found
