"""Random scenes with their captions, and which of them training never sees."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import md5

import numpy as np

from diffusion_lens.toys.shapes.captions import Caption, ThingWords, write_caption
from diffusion_lens.toys.shapes.world import (
    BACKGROUNDS,
    COLOURS,
    FRUIT,
    HELD_OUT_PAIRS,
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

HELD_OUT_CAPTIONS = 0.15
"""Share of the captions with a background word that training never sees."""

_MIDDLE = RESOLUTION / 2


@dataclass(frozen=True)
class Example:
    """A scene and one caption of it.

    Args:
        scene: What the image shows.
        caption: A text that is true of it and may leave things unsaid.
    """

    scene: Scene
    caption: str


def held_out(example: Example) -> bool:
    """Whether training must never see an example: its pair or its caption is held out.

    Args:
        example: A scene with its caption.

    Returns:
        True for scenes with a pair of `HELD_OUT_PAIRS`, and for a fixed share of full captions.
    """
    if any((thing.colour, thing.shape) in HELD_OUT_PAIRS for thing in example.scene.things):
        return True
    if " on a " not in example.caption:
        return False
    digest = int(md5(example.caption.encode(), usedforsecurity=False).hexdigest()[:8], 16)
    return digest / 0x1_0000_0000 < HELD_OUT_CAPTIONS


def _pick(rng: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(rng.integers(len(words)))]


def _thing(rng: np.random.Generator, *, plain: float, medium: float) -> Thing:
    size = "medium" if rng.random() < medium else _pick(rng, ("small", "large"))
    textured = rng.random() >= plain and size != "small"
    texture = _pick(rng, TEXTURES[1:]) if textured else "plain"
    if rng.random() < FRUIT_SHARE:
        return Thing(shape=FRUIT, colour=FRUIT, size=size)
    return Thing(
        shape=_pick(rng, SHAPES), colour=_pick(rng, tuple(COLOURS)), texture=texture, size=size
    )


def sample_single(rng: np.random.Generator) -> Scene:
    """A scene of one object, its place jittered about the middle.

    Args:
        rng: Source of randomness.

    Returns:
        The scene; it may contain a held-out pair.
    """
    thing = _thing(rng, plain=0.65, medium=0.6)
    radius = SIZES[thing.size] * rng.uniform(0.96, 1.04)
    reach = min(5.0, _MIDDLE - radius - 1.5)
    x, y = _MIDDLE + rng.uniform(-reach, reach, 2)
    thing = replace(thing, radius=radius, x=float(x), y=float(y))
    return Scene(things=(thing,), background=_pick(rng, tuple(BACKGROUNDS)))


def sample_pair(rng: np.random.Generator) -> Scene:
    """A scene of two objects of different colours that stand in a relation.

    Args:
        rng: Source of randomness.

    Returns:
        The scene; it may contain held-out pairs.
    """
    first = _thing(rng, plain=0.8, medium=1.0)
    second = first
    while second.colour == first.colour:
        second = _thing(rng, plain=0.8, medium=1.0)
    relation = _pick(rng, RELATIONS)
    sign = -1 if relation in ("above", "left of") else 1
    placed = []
    for side, thing in ((sign, first), (-sign, second)):
        along = _MIDDLE + side * rng.uniform(7.2, 8.6)
        across = _MIDDLE + rng.uniform(-3, 3)
        x, y = (across, along) if relation in ("above", "below") else (along, across)
        radius = PAIR_RADIUS * rng.uniform(0.97, 1.03)
        placed.append(replace(thing, radius=radius, x=float(x), y=float(y)))
    return Scene(things=tuple(placed), background=_pick(rng, tuple(BACKGROUNDS)), relation=relation)


def _words(thing: Thing, rng: np.random.Generator) -> ThingWords:
    texture = thing.texture if thing.texture != "plain" or rng.random() < 0.15 else None
    size = None if thing.size == "medium" else thing.size
    if thing.shape == FRUIT:
        return ThingWords(size=size, shape=FRUIT)
    return ThingWords(size=size, texture=texture, colour=thing.colour, shape=thing.shape)


def full_caption(scene: Scene, *, rng: np.random.Generator, background: bool = True) -> str:
    """A caption that names every object with all that distinguishes it.

    Args:
        scene: The scene.
        rng: Decides whether a plain object is called "plain".
        background: Whether to name the background.

    Returns:
        The text.
    """
    things = tuple(_words(thing, rng) for thing in scene.things)
    return write_caption(
        Caption(
            things=things,
            relation=scene.relation,
            background=scene.background if background else None,
        )
    )


def _fragment(scene: Scene, rng: np.random.Generator) -> str:
    """A single word or a short phrase that is true of the scene."""
    if scene.relation is not None:
        return scene.relation if rng.random() < 0.5 else scene.relation.split()[0]
    thing = scene.things[0]
    noun = f"{'an' if thing.shape == FRUIT else 'a'} {thing.shape}"
    words = [thing.colour, thing.colour, thing.shape, noun, noun, thing.texture]
    words += [f"{scene.background} background", scene.background]
    words += [] if thing.size == "medium" else [thing.size, thing.size]
    return _pick(rng, words)


def sample_example(rng: np.random.Generator, *, single: float = 0.5) -> Example:
    """A scene and a caption: full, without the background, or a fragment.

    Args:
        rng: Source of randomness; the same state gives the same example.
        single: Share of scenes with one object, in [0, 1].

    Returns:
        The example; it may be held out.
    """
    alone = rng.random() < single
    scene = sample_single(rng) if alone else sample_pair(rng)
    form = rng.random()
    if form < (0.18 if alone else 0.04):
        return Example(scene, _fragment(scene, rng))
    return Example(scene, full_caption(scene, rng=rng, background=form > 0.4))


def training_examples(seed: int, *, single: float = 0.5) -> Iterator[Example]:
    """Endless examples for training, without anything held out.

    Args:
        seed: The stream is a function of it.
        single: Share of scenes with one object, in [0, 1].

    Yields:
        Examples for which `held_out` is False.
    """
    rng = np.random.default_rng(seed)
    while True:
        example = sample_example(rng, single=single)
        if not held_out(example):
            yield example
