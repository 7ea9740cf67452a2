"""`diffusion-lens attention-maps`."""

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
from diffusion_lens.errors import FigureError

if TYPE_CHECKING:
    from diffusion_lens.analyses import AttentionMaps


@command()
def attention_maps(
    call: Call,
    prompt: PromptOrCaption,
    words: Annotated[
        list[str] | None,
        typer.Option(help="A word or phrase of the prompt. Repeatable; every word by default."),
    ] = None,
    foreign: Annotated[
        list[str] | None, typer.Option(help="A word that need not be in the prompt. Repeatable.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="default or daam.")] = None,
    aggregate: Annotated[str | None, typer.Option(help="Over steps: mean or sum.")] = None,
    upsample: Annotated[str | None, typer.Option(help="bicubic, bilinear or nearest.")] = None,
    blocks: Blocks = None,
    steps: Steps = None,
    keep: Keep = None,
    branch: Branch = "cond",
    image: Image = None,
    noise_level: NoiseLevel = None,
    num_samples: Samples = None,
    seed: Seed = 0,
) -> Finding:
    """Map how much each place of an image attends to each word (DAAM)."""
    refuse_unread_of_image(call, image, noise_level=noise_level, num_samples=num_samples)

    from diffusion_lens.analyses import attention_maps as analysis

    asked = words or (None if foreign else prompt.split())
    maps = call.run(
        analysis,
        prompt,
        words=asked if asked is not None else (),
        foreign=foreign or (),
        preset=preset,
        aggregate=aggregate,
        upsample=upsample,
        blocks=listed_numbers(blocks, "blocks"),
        steps=call.steps(steps) if image is None else whole_numbers(steps, "steps"),
        keep=keep or (),
        branch=branch,
        image=None if image is None else given_image(call, image),
        noise_level=noise_level,
        num_samples=num_samples or 1,
        seed=seed,
    )
    shown = list(dict.fromkeys([*(asked or ()), *(foreign or ())]))
    return Finding(
        f"Attention maps: {prompt}",
        maps,
        _figures(maps, shown),
        rows=_rows(maps, shown),
        pictures={"image": maps.images, **_drawn(maps, shown)},
    )


def _figures(maps: AttentionMaps, words: list[str]) -> list[Any]:
    """The overlay, if it can be drawn; the result is kept also where it has too many panels."""
    try:
        return [maps.overlay(words)] if maps.images else []
    except FigureError as error:
        typer.echo(f"The report has no figure: {error}", err=True)
        return []


def _drawn(maps: AttentionMaps, words: list[str]) -> dict[str, list[Any]]:
    """Each word's map over the image."""
    from diffusion_lens import viz

    means = [_mean(maps, word) for word in words]
    if not maps.images or any(one.ndim != 2 for one in means):
        return {}
    top = max(float(one.max()) for one in means)
    drawn = [viz.overlay_image(maps.images[0], one, zmin=0.0, zmax=top) for one in means]
    return named("word", words, drawn)


def _rows(maps: AttentionMaps, words: list[str]) -> list[dict[str, Any]]:
    means = {word: _mean(maps, word) for word in words}
    return [
        {"word": word, "mean": float(one.mean()), "largest": float(one.max())}
        for word, one in means.items()
    ]


def _mean(maps: AttentionMaps, word: str) -> Any:
    """The map of a word in the first image; steps, blocks and heads averaged."""
    found = maps.word(word, sample=0).float()
    kept = sum(axis in maps.axes for axis in ("step", "block", "head"))
    return found.flatten(0, kept - 1).mean(0) if kept else found
