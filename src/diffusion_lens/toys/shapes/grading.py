"""Which parts of a caption an image gets right, decided by a program."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from diffusion_lens.border import public
from diffusion_lens.toys.shapes.captions import Caption, ThingWords, read_caption
from diffusion_lens.toys.shapes.finding import Found, find_things
from diffusion_lens.toys.shapes.sampling import CLEAR_OFFSET
from diffusion_lens.toys.shapes.world import RESOLUTION, SIZES

_SMALL = (SIZES["small"] + SIZES["medium"]) / 2
_LARGE = (SIZES["medium"] + SIZES["large"]) / 2


@dataclass(frozen=True, kw_only=True)
class ThingGrade:
    """Which words about one object are right; None for what the caption leaves unsaid.

    Args:
        found: Whether the image has an object for it at all.
        size: "small" or "large".
        texture: "plain", "striped" or "dotted".
        colour: The colour word; the fruit is orange.
        shape: The shape word or the fruit.
    """

    found: bool
    size: bool | None = None
    texture: bool | None = None
    colour: bool | None = None
    shape: bool | None = None

    @property
    def right(self) -> bool:
        """True if nothing that was said is wrong."""
        return self.found and False not in (self.size, self.texture, self.colour, self.shape)


@dataclass(frozen=True, kw_only=True)
class Grade:
    """What an image gets right of its caption; None for what the caption leaves unsaid.

    Args:
        things: One grade for each object that the caption names.
        count: Whether the image has exactly as many objects as the caption implies.
        relation: Whether the objects stand, or a single one lies, as the caption says.
        background: Whether the background has the colour that the caption says.
    """

    things: tuple[ThingGrade, ...]
    count: bool | None
    relation: bool | None
    background: bool | None

    @property
    def right(self) -> bool:
        """True if everything that the caption says is right."""
        whole = False not in (self.count, self.relation, self.background)
        return whole and all(thing.right for thing in self.things)

    @property
    def parts(self) -> Mapping[str, bool | None]:
        """Each attribute over all objects, the count, the relation, the background, and "all"."""
        attributes = {
            name: _joined([getattr(thing, name) for thing in self.things])
            for name in ("size", "texture", "colour", "shape")
        }
        whole = {
            "count": self.count,
            "relation": self.relation,
            "background": self.background,
            "all": self.right,
        }
        return attributes | whole


def _joined(verdicts: Sequence[bool | None]) -> bool | None:
    said = [verdict for verdict in verdicts if verdict is not None]
    return all(said) if said else None


def _grade_thing(words: ThingWords, found: Found | None) -> ThingGrade:
    said = {name: word for name, word in vars(words).items() if word is not None}
    if words.shape == "orange":
        said["colour"] = "orange"
    if found is None:
        return ThingGrade(found=False, **dict.fromkeys(said, False))
    size = "small" if found.radius < _SMALL else "large" if found.radius > _LARGE else "medium"
    seen = {"size": size, "texture": found.texture, "colour": found.colour, "shape": found.shape}
    return ThingGrade(found=True, **{name: seen[name] == word for name, word in said.items()})


def _stands(relation: str, first: Found, second: Found) -> bool:
    right, down = first.x - second.x, first.y - second.y
    ahead, aside = {
        "above": (-down, right),
        "below": (down, right),
        "left of": (-right, down),
        "right of": (right, down),
    }[relation]
    return ahead > 5 and ahead > abs(aside)


def _lies(place: str, thing: Found) -> bool:
    middle = RESOLUTION / 2
    offset = {
        "above": middle - thing.y,
        "below": thing.y - middle,
        "left": middle - thing.x,
        "right": thing.x - middle,
    }[place]
    return offset > CLEAR_OFFSET / 2


def _expected(caption: Caption) -> int | None:
    return 2 if caption.relation or caption.axis else len(caption.things) or None


@public
def grade(
    image: UInt8[np.ndarray, "height width rgb"] | Image.Image, caption: str | Caption
) -> Grade:
    """Say which objects, attributes, relations and background of a caption an image gets right.

    Only what the caption says is graded: any texture will do for "a red circle". It misleads on
    objects that touch each other or the image's edge: it finds them as one or without a shape.

    Args:
        image: RGB, 0 to 255, 32 x 32 pixels; an array or a picture.
        caption: What the image should show.

    Returns:
        The grade; the objects of the image are matched to the caption's in its favour.

    Raises:
        ValueError: If the image has another size or type.
        CaptionError: If the caption is not of this world.
    """
    pixels = np.asarray(image)
    if pixels.shape != (RESOLUTION, RESOLUTION, 3) or pixels.dtype != np.uint8:
        raise ValueError(
            f"grading reads one uint8 image of shape ({RESOLUTION}, {RESOLUTION}, 3), then its "
            f"caption; this is {pixels.dtype} of {pixels.shape}. `toys.generate` gives such images"
        )
    said = caption if isinstance(caption, Caption) else read_caption(caption)
    background, found = find_things(pixels)
    expected = _expected(said)
    candidates: list[Found | None] = [*found[:4], *[None] * len(said.things)]
    best, best_score = None, -1
    for chosen in permutations(candidates, len(said.things)):
        things = tuple(_grade_thing(*pair) for pair in zip(said.things, chosen, strict=True))
        relation = None
        if said.relation is not None:
            first, second = chosen
            relation = bool(first and second and _stands(said.relation, first, second))
        score = sum(8 * t.found + sum(v is True for v in vars(t).values()) for t in things)
        score += bool(relation)
        if score > best_score:
            best, best_score = (things, relation), score
    assert best is not None
    things, relation = best
    if said.place is not None:
        relation = bool(found) and _lies(said.place, found[0])
    if said.axis is not None:
        words = ("above", "below") if said.axis == "vertical" else ("left of", "right of")
        relation = len(found) == 2 and any(_stands(word, *found) for word in words)
    return Grade(
        things=things,
        count=None if expected is None else len(found) == expected,
        relation=relation,
        background=None if said.background is None else background == said.background,
    )
