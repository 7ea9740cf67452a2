"""What the shapes world is made of: its words, its colours in numbers, its scenes."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

RESOLUTION = 32
"""Height and width of an image, in pixels."""

COLOURS: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "red": (220, 30, 40),
        "green": (40, 170, 60),
        "blue": (40, 80, 225),
        "yellow": (250, 230, 40),
        "orange": (250, 140, 20),
    }
)
BACKGROUNDS: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "white": (245, 245, 245),
        "black": (20, 20, 20),
        "gray": (128, 128, 128),
        "pink": (250, 175, 200),
    }
)
SHAPES = ("circle", "square", "triangle", "cross")
FRUIT = "orange"
"""The polysemous word: a colour before a shape, a fruit with a leaf where it stands as a noun."""

TEXTURES = ("plain", "striped", "dotted")
SIZES: Mapping[str, float] = MappingProxyType({"small": 4.8, "medium": 6.4, "large": 8.5})
"""Radius in pixels. `medium` is an object without a size word; the word is never written."""

PAIR_RADIUS = 5.6
"""Radius of each object of a pair; pairs carry no size words."""

RELATIONS = ("above", "below", "left of", "right of")

HELD_OUT_PAIRS = frozenset(
    {("blue", "circle"), ("yellow", "square"), ("red", "triangle"), ("green", "cross")}
)
"""Combinations of colour and shape that no training image and no training caption contains."""

CONCEPTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "Colour": tuple(COLOURS),
        "Shape": SHAPES,
        "Texture": TEXTURES,
        "Size": ("small", "large"),
        "Background": tuple(BACKGROUNDS),
        "Relation": ("above", "below", "left", "right"),
    }
)
"""The attributes as concepts: name to the words that a caption uses for it."""

UNKNOWN_WORD = "?"
"""What a training caption has in place of a word that is not said; no tokenizer knows it."""

WORDS = (
    *("a", "an", "on", "background", "of", "above", "below", "left", "right", "small", "large"),
    *TEXTURES,
    *COLOURS,
    *BACKGROUNDS,
    *SHAPES,
)
"""Every word that a caption can contain, in the order of the tokenizers' ids."""


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One object of a scene.

    Args:
        shape: A word of `SHAPES`, or `FRUIT`.
        colour: A word of `COLOURS`; always "orange" for the fruit.
        texture: A word of `TEXTURES`; always "plain" for the fruit.
        size: A key of `SIZES`.
        radius: Half of the extent, in pixels.
        x: Centre, in pixels from the left edge.
        y: Centre, in pixels from the top edge.
        paint: RGB in which it is drawn where that is not its colour's; 0 to 255.
    """

    shape: str
    colour: str
    texture: str = "plain"
    size: str = "medium"
    radius: float = SIZES["medium"]
    x: float = RESOLUTION / 2
    y: float = RESOLUTION / 2
    paint: tuple[int, int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What one image shows.

    Args:
        things: One or two objects that do not touch.
        background: A word of `BACKGROUNDS`.
        relation: A word of `RELATIONS` that holds between the first and the second object, or None.
    """

    things: tuple[Thing, ...]
    background: str
    relation: str | None = None
