"""The caption grammar: what a caption says, written as text and read back."""

from dataclasses import dataclass

from diffusion_lens.errors import DiffusionLensError, closest
from diffusion_lens.toys.shapes.world import (
    BACKGROUNDS,
    COLOURS,
    FRUIT,
    RELATIONS,
    SHAPES,
    TEXTURES,
    WORDS,
)

_AXES = {"above": "vertical", "below": "vertical", "left": "horizontal", "right": "horizontal"}


class CaptionError(DiffusionLensError, ValueError):
    """A text is not a caption of the shapes world."""


@dataclass(frozen=True, kw_only=True)
class ThingWords:
    """What a caption says about one object; None where it says nothing.

    Args:
        size: "small" or "large".
        texture: A word of `TEXTURES`.
        colour: A word of `COLOURS`.
        shape: A word of `SHAPES`, or `FRUIT`.
    """

    size: str | None = None
    texture: str | None = None
    colour: str | None = None
    shape: str | None = None

    def text(self) -> str:
        """The words in their order in a phrase, without an article."""
        return " ".join(w for w in (self.size, self.texture, self.colour, self.shape) if w)


@dataclass(frozen=True, kw_only=True)
class Caption:
    """What a caption says.

    Args:
        things: What it says about each object that it names.
        relation: A word of `RELATIONS`; None without a second object.
        background: A word of `BACKGROUNDS`, or None.
        axis: "vertical" or "horizontal" for a bare relation word such as "above"; else None.
        place: Side of the image's middle on which a single object lies, as in "a red circle above":
            "above", "below", "left" or "right"; else None.
    """

    things: tuple[ThingWords, ...] = ()
    relation: str | None = None
    background: str | None = None
    axis: str | None = None
    place: str | None = None

    @property
    def ambiguous(self) -> bool:
        """True for the bare word "orange", which may be the colour or the fruit."""
        return self == Caption(things=(ThingWords(colour=FRUIT),))


def _phrase(words: ThingWords) -> str:
    text = words.text()
    return f"{'an' if text.startswith('o') else 'a'} {text}"


def write_caption(caption: Caption) -> str:
    """The text of a full caption; the counterpart of `read_caption`.

    Args:
        caption: What to say. Objects are written with an article.

    Returns:
        For example "a striped red circle above a blue square on a white background".
    """
    parts = [_phrase(caption.things[0])] if caption.things else []
    if caption.relation:
        parts += [caption.relation, _phrase(caption.things[1])]
    if caption.place:
        parts.append(caption.place)
    if caption.background:
        parts.append(f"on a {caption.background} background")
    return " ".join(parts)


def _read_thing(words: list[str], text: str) -> ThingWords:
    found: dict[str, str] = {}
    bare = words[0] not in ("a", "an")
    described = words if bare else words[1:]
    for place, word in enumerate(described):
        noun = word == FRUIT and place == len(described) - 1 and not (bare and place == 0)
        if word in SHAPES or noun:
            kind = "shape"
        elif word in COLOURS:
            kind = "colour"
        elif word in TEXTURES:
            kind = "texture"
        elif word in ("small", "large"):
            kind = "size"
        else:
            raise CaptionError(
                f"{word!r} does not describe an object in {text!r}; words of size, texture, colour "
                "and shape do. A caption has at most two objects, then 'on a white background'"
            )
        if kind in found:
            raise CaptionError(f"{text!r} names two words of {kind}: {found[kind]!r} and {word!r}")
        found[kind] = word
    if not found:
        raise CaptionError(f"an article without a noun in {text!r}")
    return ThingWords(**found)


def no_word(word: str, text: str) -> str:
    """A sentence about a word that the world does not have, with the one that may be meant.

    Args:
        word: The word.
        text: The caption that it is in.

    Returns:
        What a message begins with.
    """
    near = closest(word.lower().strip(".,"), WORDS, count=1, cutoff=0.6)
    hint = f" Closest: {near[0]!r}." if near else ""
    return f"{word!r} in {text!r} is no word of the shapes world.{hint}"


def read_caption(text: str) -> Caption:
    """Understand a caption, a fragment or a single word.

    Args:
        text: Lower-case words separated by spaces. "" says nothing.

    Returns:
        What it says. A last word "orange" after an article is the fruit; alone it is ambiguous and
        read as the colour (`Caption.ambiguous`).

    Raises:
        CaptionError: If a word is unknown or the words form no caption.
    """
    words = text.split()
    for word in words:
        if word not in WORDS:
            raise CaptionError(f"{no_word(word, text)} It has, in lower case, {', '.join(WORDS)}")
    if text in _AXES or text in RELATIONS:
        return Caption(axis=_AXES[words[0]])
    background = None
    if words and words[-1] == "background":
        background = words[-2] if len(words) > 1 else None
        if background not in BACKGROUNDS:
            raise CaptionError(f"{text!r} names no background; there are {', '.join(BACKGROUNDS)}")
        words = words[:-2]
        words = words[:-2] if words[-2:] == ["on", "a"] else words
    elif words and words[-1] in BACKGROUNDS and len(words) == 1:
        return Caption(background=words[0])
    for relation in RELATIONS:
        key = relation.split()
        for at in range(1, len(words) - len(key)):
            if words[at : at + len(key)] == key:
                pair = (words[:at], words[at + len(key) :])
                things = tuple(_read_thing(part, text) for part in pair)
                return Caption(things=things, relation=relation, background=background)
    place = words.pop() if len(words) > 1 and words[-1] in _AXES else None
    things = (_read_thing(words, text),) if words else ()
    return Caption(things=things, background=background, place=place)
