"""Objects in colours that have no name, so that images do not tell which combinations occur."""

from dataclasses import replace

import numpy as np

from diffusion_lens.toys.shapes.finding import shades
from diffusion_lens.toys.shapes.sampling import Example
from diffusion_lens.toys.shapes.world import BACKGROUNDS, COLOURS, FRUIT, HELD_OUT_PAIRS, Thing

FROM_HELD_OUT = 80.0
"""Least Euclidean distance in RGB from the colour that is held out for the object's shape."""

MARGIN = 20.0
"""How much nearer than that colour or its shades another one has to be."""

FROM_BACKGROUND = 80.0
"""Least Euclidean distance in RGB from the background."""

UNNAMED = "?"
"""What a caption says of such a colour: a word that no tokenizer knows."""


def _paint(thing: Thing, background: str, rng: np.random.Generator) -> tuple[int, int, int]:
    """An RGB that stands out and that grading does not take for the shape's held-out colour."""
    barred = np.array([(colour, thing.shape) in HELD_OUT_PAIRS for colour in COLOURS])
    while True:
        paint = rng.integers(0, 256, 3)
        away = np.linalg.norm(paint - shades(), axis=-1)
        nearest = float(away[:, ~barred].min())
        stands_out = np.linalg.norm(paint - BACKGROUNDS[background]) >= FROM_BACKGROUND
        allowed = away[:, barred].min() >= nearest + MARGIN and away[0, barred] >= FROM_HELD_OUT
        if stands_out and allowed:
            red, green, blue = (int(level) for level in paint)
            return red, green, blue


def repaint(example: Example, *, share: float, rng: np.random.Generator) -> Example:
    """Draw some objects in colours without a name, which the caption leaves unknown.

    Where training shows each colour on all shapes but one, images themselves teach that the missing
    combination does not occur. Among colours without end, of which most have no name, a shape tells
    nothing of the colour. Held-out combinations do not come in this way: no object gets a colour
    that the world's grading would call by the held-out name.

    Args:
        example: A scene with its caption.
        share: Chance of each plain object but the fruit, in [0, 1]; stripes and dots have further
            colours of their own.
        rng: Source of randomness.

    Returns:
        The example, with `paint` for some objects and `UNNAMED` for the words of their colours.
    """
    things, words = [], example.caption.split()
    for thing in example.scene.things:
        if thing.texture == "plain" and thing.shape != FRUIT and rng.random() < share:
            words = [UNNAMED if word == thing.colour else word for word in words]
            thing = replace(thing, paint=_paint(thing, example.scene.background, rng))
        things.append(thing)
    return Example(replace(example.scene, things=tuple(things)), " ".join(words))
