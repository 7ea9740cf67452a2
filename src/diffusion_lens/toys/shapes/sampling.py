"""Scenes with their captions, and which of them training never sees."""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import md5

import numpy as np

from diffusion_lens.toys.shapes.captions import Caption, ThingWords, write_caption
from diffusion_lens.toys.shapes.scenes import pick, sample_pair, sample_single
from diffusion_lens.toys.shapes.world import FRUIT, HELD_OUT_PAIRS, RESOLUTION, Scene, Thing

HELD_OUT_CAPTIONS = 0.15
"""Share of the captions with a background word that training never sees."""

CLEAR_OFFSET = 2.0
"""Pixels that a single object must lie off the middle for its caption to name the side."""


@dataclass(frozen=True)
class Example:
    """A scene and one caption of it.

    Args:
        scene: What the image shows.
        caption: A text that is true of it and may leave things unsaid.
    """

    scene: Scene
    caption: str


def has_held_out_pair(scene: Scene) -> bool:
    """Whether an object has a combination of colour and shape that training never sees.

    Args:
        scene: One or two objects.

    Returns:
        True if one of its objects is in `HELD_OUT_PAIRS`.
    """
    return any((thing.colour, thing.shape) in HELD_OUT_PAIRS for thing in scene.things)


def held_out(example: Example) -> bool:
    """Whether training must never see an example: its pair or its caption is held out.

    Args:
        example: A scene with its caption.

    Returns:
        True for scenes with a pair of `HELD_OUT_PAIRS`, and for a fixed share of full captions.
    """
    if has_held_out_pair(example.scene):
        return True
    if " on a " not in example.caption:
        return False
    digest = int(md5(example.caption.encode(), usedforsecurity=False).hexdigest()[:8], 16)
    return digest / 0x1_0000_0000 < HELD_OUT_CAPTIONS


def exchangeable(scene: Scene) -> bool:
    """Whether training may also see a pair with its two colours exchanged.

    Where it may not, the words in any order tell which colour is on which shape; a model that
    learns this instead of the order draws a held-out combination with colours exchanged.

    Args:
        scene: One or two objects.

    Returns:
        True for one object, and for pairs with the fruit, whose colour cannot go elsewhere.
    """
    if len(scene.things) == 1 or any(thing.shape == FRUIT for thing in scene.things):
        return True
    first, second = scene.things
    exchanged = {(first.colour, second.shape), (second.colour, first.shape)}
    return not exchanged & HELD_OUT_PAIRS


def needs_binding(scene: Scene) -> bool:
    """Whether a pair has two shapes and two colours that could go either way.

    Args:
        scene: One or two objects.

    Returns:
        False for one object, for two of the same shape or colour and for pairs with the fruit.
    """
    shapes = {thing.shape for thing in scene.things}
    colours = {thing.colour for thing in scene.things}
    return len(shapes) == len(colours) == 2 and FRUIT not in shapes


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


def _place(thing: Thing) -> str | None:
    """The side of the middle on which an object clearly lies."""
    right, down = thing.x - RESOLUTION / 2, thing.y - RESOLUTION / 2
    ahead = {"above": -down, "below": down, "left": -right, "right": right}
    best = max(ahead, key=lambda word: ahead[word])
    return best if ahead[best] > CLEAR_OFFSET else None


def _fragment(scene: Scene, rng: np.random.Generator) -> str:
    """A single word or a short phrase that is true of the scene."""
    if scene.relation is not None:
        return scene.relation if rng.random() < 0.5 else scene.relation.split()[0]
    thing = scene.things[0]
    noun = f"{'an' if thing.shape == FRUIT else 'a'} {thing.shape}"
    words = [thing.colour, thing.colour, thing.shape, noun, noun, thing.texture]
    words += [f"{scene.background} background", scene.background]
    words += [] if thing.size == "medium" else [thing.size, thing.size]
    return pick(rng, words)


def sample_example(
    rng: np.random.Generator,
    *,
    single: float = 0.5,
    forward: float | None = None,
    placed: float = 0.22,
) -> Example:
    """A scene and a caption: full, with a place instead of the background, or a fragment.

    Args:
        rng: Source of randomness; the same state gives the same example.
        single: Share of scenes with one object, in [0, 1].
        forward: Share of pairs whose first object is above or left of the second; None for half.
        placed: Share of captions that leave the background out; of a single object they say the
            place where it lies clearly off the middle.

    Returns:
        The example; it may be held out.
    """
    alone = rng.random() < single
    scene = sample_single(rng) if alone else sample_pair(rng, forward=forward)
    form, short = rng.random(), 0.18 + placed
    if form < (0.18 if alone else 0.04):
        return Example(scene, _fragment(scene, rng))
    caption = full_caption(scene, rng=rng, background=form > short)
    if alone and form <= short:
        place = _place(scene.things[0])
        caption = f"{caption} {place}" if place else caption
    return Example(scene, caption)


def training_examples(
    seed: int,
    *,
    single: float = 0.5,
    forward: float | None = None,
    placed: float = 0.22,
    only_exchangeable: bool = False,
    easy_pairs: float = 1.0,
) -> Iterator[Example]:
    """Endless examples for training, without anything held out.

    Args:
        seed: The stream is a function of it.
        single: Share of scenes with one object, in [0, 1].
        forward: Share of pairs whose first object is above or left of the second; None for half.
        placed: As for `sample_example`.
        only_exchangeable: Whether to leave out pairs that are not `exchangeable`.
        easy_pairs: Share that is kept of the pairs for which `needs_binding` is False. Both leave
            a larger share of single objects than `single`, which holds before.

    Yields:
        Examples for which `held_out` is False.
    """
    rng = np.random.default_rng(seed)
    while True:
        example = sample_example(rng, single=single, forward=forward, placed=placed)
        scene = example.scene
        if held_out(example) or (only_exchangeable and not exchangeable(scene)):
            continue
        easy = len(scene.things) == 2 and not needs_binding(scene)
        # Without a draw where all are kept, so that a recipe without the setting keeps its stream.
        if easy and easy_pairs < 1 and rng.random() >= easy_pairs:
            continue
        yield example
