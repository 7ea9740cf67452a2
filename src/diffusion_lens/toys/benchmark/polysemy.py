"""The word with two meanings: how often "orange", the colour, is drawn as the fruit, or back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from diffusion_lens.toys.benchmark.causal import Generator
from diffusion_lens.toys.shapes.finding import Found, find_things
from diffusion_lens.toys.shapes.world import BACKGROUNDS, FRUIT, SHAPES


@dataclass(frozen=True)
class SensePrompt:
    """A caption with the word "orange" in one sense.

    Args:
        caption: The text.
        sense: "fruit", "colour", or "either" for the word alone.
    """

    caption: str
    sense: str


def sense_prompts() -> tuple[SensePrompt, ...]:
    """Captions that fix the sense by their grammar, and the bare word, which fixes none.

    Returns:
        On each background: the fruit alone and with a blue square, each shape in orange, alone and
        with a blue square; then the word alone, eight times.
    """
    prompts = []
    for background in BACKGROUNDS:
        end = f"on a {background} background"
        for start in ("an orange", "a large orange", "an orange above a blue square"):
            prompts.append(SensePrompt(f"{start} {end}", "fruit"))
        for shape in SHAPES:
            prompts.append(SensePrompt(f"an orange {shape} {end}", "colour"))
        prompts.append(SensePrompt(f"an orange circle above a blue square {end}", "colour"))
    return (*prompts, *[SensePrompt("orange", "either")] * 8)


def drawn_sense(image: UInt8[np.ndarray, "height width rgb"]) -> str | None:
    """Which sense of the word an image shows.

    Args:
        image: RGB, 0 to 255.

    Returns:
        "fruit" or "colour"; None without an orange object that has a shape.
    """
    orange = [thing for thing in find_things(image)[1] if _is_orange(thing)]
    if not orange:
        return None
    return "fruit" if orange[0].shape == FRUIT else "colour"


def _is_orange(thing: Found) -> bool:
    return thing.colour == "orange" and thing.shape is not None


@dataclass(frozen=True)
class PolysemyScore:
    """How the word was read.

    Args:
        count: Prompts of each sense.
        misread: Share of the prompts of each sense in which the other was drawn.
        missing: Share in which no orange object with a shape was drawn.
        fruit: Share of the bare word's images that show the fruit.
    """

    count: Mapping[str, int]
    misread: Mapping[str, float]
    missing: Mapping[str, float]
    fruit: float


def score_polysemy(
    generate: Generator, *, prompts: Sequence[SensePrompt] | None = None
) -> PolysemyScore:
    """Draw every prompt and see which sense comes out.

    Args:
        generate: Draws one image for each caption.
        prompts: What to draw; None for `sense_prompts`.

    Returns:
        The shares.
    """
    prompts = sense_prompts() if prompts is None else prompts
    drawn = [drawn_sense(image) for image in generate([one.caption for one in prompts])]
    by_sense = {
        sense: [seen for one, seen in zip(prompts, drawn, strict=True) if one.sense == sense]
        for sense in ("fruit", "colour", "either")
    }
    other = {"fruit": "colour", "colour": "fruit"}
    return PolysemyScore(
        count={sense: len(seen) for sense, seen in by_sense.items()},
        misread={s: float(np.mean([x == other[s] for x in by_sense[s]])) for s in other},
        missing={s: float(np.mean([x is None for x in by_sense[s]])) for s in other},
        fruit=float(np.mean([x == "fruit" for x in by_sense["either"]])),
    )


def misreading(drawn: Sequence[str | None], meant: str) -> dict[str, float]:
    """How often a word that was meant in one sense is drawn in the other.

    Args:
        drawn: What `drawn_sense` gives for each image.
        meant: "fruit" or "colour".

    Returns:
        `rate`: share of the images that show the other sense; `low` and `high`: its 95 % interval
        (Wilson), over seeds; `missing`: share that shows neither; `count`: number of images.

    Raises:
        ValueError: If the sense is unknown, or there are no images.
    """
    other = {"fruit": "colour", "colour": "fruit"}
    if meant not in other or not drawn:
        raise ValueError(
            f"misreading of {len(drawn)} images as {meant!r}: a sense is one of {other}"
        )
    count, z = len(drawn), 1.96
    rate = sum(seen == other[meant] for seen in drawn) / count
    centre = (rate + z * z / (2 * count)) / (1 + z * z / count)
    spread = (rate * (1 - rate) / count + (z / (2 * count)) ** 2) ** 0.5
    half = z / (1 + z * z / count) * spread
    return {
        "rate": rate,
        "low": max(0.0, centre - half),
        "high": min(1.0, centre + half),
        "missing": sum(seen is None for seen in drawn) / count,
        "count": float(count),
    }
