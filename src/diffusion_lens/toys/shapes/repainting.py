"""Objects in colours that have no name, so that images do not tell which combinations occur."""

import colorsys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from diffusion_lens.toys.shapes.finding import shades
from diffusion_lens.toys.shapes.sampling import Example
from diffusion_lens.toys.shapes.world import (
    BACKGROUNDS,
    COLOURS,
    FRUIT,
    HELD_OUT_PAIRS,
    UNKNOWN_WORD,
    Thing,
)

MARGIN = 20.0
"""How much nearer to a paint, in RGB, than the held-out colour or its shades another has to be."""

HUE_RATIO = 2.0
"""A hue is taken for a colour's if no other colour is nearer by this factor."""

GRAY = 20
"""A paint whose channels differ by less than this has no hue."""

FROM_BACKGROUND = 80.0
"""Least Euclidean distance in RGB from the background."""

_SHADES = dict(zip(COLOURS, np.moveaxis(shades(), 1, 0), strict=True))


def _hue(colour: Sequence[int]) -> float:
    """The hue in degrees."""
    red, green, blue = (level / 255 for level in colour)
    return 360 * colorsys.rgb_to_hsv(red, green, blue)[0]


_HUES = {word: _hue(rgb) for word, rgb in COLOURS.items()}


def taken_for(paint: Sequence[int], colour: str) -> bool:
    """Whether a paint could be called by a colour's name, by its hue or by the world's grading.

    Args:
        paint: RGB, 0 to 255.
        colour: A word of `COLOURS`.

    Returns:
        True in doubt: for a hue well on the way to the next colour, and for what grading would
        call otherwise by a small margin.
    """
    hue = _hue(paint)
    apart = {word: abs((hue - own + 180) % 360 - 180) for word, own in _HUES.items()}
    away = {word: np.linalg.norm(paint - rgb, axis=-1).min() for word, rgb in _SHADES.items()}
    own_hue, own_shade = apart.pop(colour), away.pop(colour)
    hued = max(paint) - min(paint) >= GRAY
    return bool(
        (hued and own_hue < HUE_RATIO * min(apart.values()))
        or own_shade < min(away.values()) + MARGIN
    )


def _paint(thing: Thing, background: str, rng: np.random.Generator) -> tuple[int, int, int]:
    """An RGB that stands out and that could not be called by the shape's held-out colour."""
    barred = [colour for colour, shape in HELD_OUT_PAIRS if shape == thing.shape]
    while True:
        red, green, blue = (int(level) for level in rng.integers(0, 256, 3))
        paint = red, green, blue
        stands_out = np.subtract(paint, BACKGROUNDS[background])
        if np.linalg.norm(stands_out) < FROM_BACKGROUND:
            continue
        if not any(taken_for(paint, colour) for colour in barred):
            return paint


def repaint(example: Example, *, share: float, rng: np.random.Generator) -> Example:
    """Draw some objects in colours without a name, which the caption leaves unknown.

    Where training shows each colour on all shapes but one, images themselves teach that the missing
    combination does not occur. Among colours without end, of which most have no name, a shape tells
    nothing of the colour. Held-out combinations do not come in this way: no object gets a paint
    that is `taken_for` the held-out colour of its shape.

    Args:
        example: A scene with its caption.
        share: Chance of each plain object but the fruit, in [0, 1]; stripes and dots have further
            colours of their own.
        rng: Source of randomness.

    Returns:
        The example, with `paint` for some objects and `UNKNOWN_WORD` for their colours' words.
    """
    things, words = [], example.caption.split()
    for thing in example.scene.things:
        if thing.texture == "plain" and thing.shape != FRUIT and rng.random() < share:
            words = [UNKNOWN_WORD if word == thing.colour else word for word in words]
            thing = replace(thing, paint=_paint(thing, example.scene.background, rng))
        things.append(thing)
    return Example(replace(example.scene, things=tuple(things)), " ".join(words))
