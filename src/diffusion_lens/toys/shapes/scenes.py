"""Random scenes, and scenes of which a given caption is true."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from diffusion_lens.toys.shapes.captions import ThingWords, read_caption
from diffusion_lens.toys.shapes.world import (
    BACKGROUNDS,
    COLOURS,
    FRUIT,
    PAIR_RADIUS,
    RELATIONS,
    RESOLUTION,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    Thing,
)

FRUIT_SHARE = 0.12
"""Share of objects that are the fruit."""

_MIDDLE = RESOLUTION / 2
_FORWARD, _BACKWARD = RELATIONS[::2], RELATIONS[1::2]


def pick(rng: np.random.Generator, words: Sequence[str]) -> str:
    """One of some words, each equally likely.

    Args:
        rng: Source of randomness.
        words: At least one.

    Returns:
        The word.
    """
    return words[int(rng.integers(len(words)))]


def _thing(rng: np.random.Generator, *, plain: float, medium: float) -> Thing:
    size = "medium" if rng.random() < medium else pick(rng, ("small", "large"))
    textured = rng.random() >= plain and size != "small"
    texture = pick(rng, TEXTURES[1:]) if textured else "plain"
    if rng.random() < FRUIT_SHARE:
        return Thing(shape=FRUIT, colour=FRUIT, size=size)
    return Thing(
        shape=pick(rng, SHAPES), colour=pick(rng, tuple(COLOURS)), texture=texture, size=size
    )


def place_single(thing: Thing, *, rng: np.random.Generator) -> Thing:
    """Give an object that stands alone its extent and a place about the middle.

    Args:
        thing: The object.
        rng: Source of randomness.

    Returns:
        The object with radius, x and y.
    """
    radius = SIZES[thing.size] * rng.uniform(0.96, 1.04)
    reach = min(5.0, _MIDDLE - radius - 1.5)
    x, y = _MIDDLE + rng.uniform(-reach, reach, 2)
    return replace(thing, radius=radius, x=float(x), y=float(y))


def place_pair(
    first: Thing, second: Thing, *, relation: str, rng: np.random.Generator
) -> tuple[Thing, Thing]:
    """Give two objects their extents and places in which a relation holds.

    Args:
        first: The object of which the relation is said.
        second: The object to which it stands so.
        relation: A word of `RELATIONS`.
        rng: Source of randomness.

    Returns:
        Both with radius, x and y.
    """
    sign = -1 if relation in ("above", "left of") else 1
    placed = []
    for side, thing in ((sign, first), (-sign, second)):
        along = _MIDDLE + side * rng.uniform(7.2, 8.6)
        across = _MIDDLE + rng.uniform(-3, 3)
        x, y = (across, along) if relation in ("above", "below") else (along, across)
        radius = PAIR_RADIUS * rng.uniform(0.97, 1.03)
        placed.append(replace(thing, radius=radius, x=float(x), y=float(y)))
    return placed[0], placed[1]


def sample_single(rng: np.random.Generator) -> Scene:
    """A scene of one object, its place jittered about the middle.

    Args:
        rng: Source of randomness.

    Returns:
        The scene; it may contain a held-out pair.
    """
    thing = place_single(_thing(rng, plain=0.65, medium=0.6), rng=rng)
    return Scene(things=(thing,), background=pick(rng, tuple(BACKGROUNDS)))


def sample_pair(rng: np.random.Generator, *, forward: float | None = None) -> Scene:
    """A scene of two objects of different colours that stand in a relation.

    Args:
        rng: Source of randomness.
        forward: Share of scenes in which the first object is above or left of the second; None
            makes the four relations equally likely.

    Returns:
        The scene; it may contain held-out pairs.
    """
    first = _thing(rng, plain=0.8, medium=1.0)
    second = first
    while second.colour == first.colour:
        second = _thing(rng, plain=0.8, medium=1.0)
    words = RELATIONS
    if forward is not None:
        words = _FORWARD if rng.random() < forward else _BACKWARD
    relation = pick(rng, words)
    placed = place_pair(first, second, relation=relation, rng=rng)
    return Scene(things=placed, background=pick(rng, tuple(BACKGROUNDS)), relation=relation)


def pose(caption: str, *, rng: np.random.Generator) -> Scene:
    """A scene of which a caption is true; what it leaves unsaid is random.

    Drawn by `render`, it is what a perfect model would make of the caption.

    Args:
        caption: A caption of the world; the bare word "orange" is posed as the colour.
        rng: Source of randomness.

    Returns:
        The scene; held-out pairs are posed like others.

    Raises:
        CaptionError: If the text is no caption.
    """
    said = read_caption(caption)
    if said.relation is None and said.axis is None:
        scene = sample_single(rng)
        dressed = [_dressed(scene.things[0], words) for words in said.things]
        things = tuple(place_single(thing, rng=rng) for thing in dressed) or scene.things
        if said.place is not None:
            things = tuple(_moved(thing, said.place) for thing in things)
        return Scene(things=things, background=said.background or scene.background)
    scene = sample_pair(rng)
    if said.axis is not None:
        vertical = said.axis == "vertical"
        relation = pick(rng, RELATIONS[:2] if vertical else RELATIONS[2:])
    else:
        assert said.relation is not None
        relation = said.relation
    words = said.things or (ThingWords(), ThingWords())
    first, second = (_dressed(*pair) for pair in zip(scene.things, words, strict=True))
    things = place_pair(first, second, relation=relation, rng=rng)
    return Scene(things=things, background=said.background or scene.background, relation=relation)


def _moved(thing: Thing, place: str) -> Thing:
    """The object 4 pixels to one side of the middle."""
    right, down = {"above": (0, -4), "below": (0, 4), "left": (-4, 0), "right": (4, 0)}[place]
    return replace(thing, x=_MIDDLE + right, y=_MIDDLE + down)


def _dressed(thing: Thing, words: ThingWords) -> Thing:
    """The object with what a caption says of it."""
    said = {kind: word for kind, word in vars(words).items() if word is not None}
    if words.shape == FRUIT:
        return replace(thing, **{"texture": "plain", "size": "medium", **said, "colour": FRUIT})
    shape = SHAPES[0] if thing.shape == FRUIT else thing.shape
    return replace(thing, **{"texture": "plain", "size": "medium", "shape": shape, **said})
