"""Graded weakening curves: how fast an attribute goes as its heads are weakened."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from jaxtyping import UInt8

from diffusion_lens.toys.shapes.captions import Caption, read_caption
from diffusion_lens.toys.shapes.evaluation import test_captions
from diffusion_lens.toys.shapes.grading import grade

Head = TypeVar("Head")
Weakened = Callable[[Sequence[str], Sequence[Head]], UInt8[np.ndarray, "batch height width rgb"]]
"""One image for each caption, from the same noise at every call, with some heads weakened."""


@dataclass(frozen=True)
class WeakeningCurve:
    """Shares of images in which each attribute is still right.

    Args:
        weakened: Number of weakened heads at each point; begins at 0.
        shares: Part of a grade to its share at each point.
    """

    weakened: tuple[int, ...]
    shares: Mapping[str, tuple[float, ...]]

    def area(self, part: str) -> float:
        """Mean share of a part over the curve, by the trapezoid rule; lower means lost sooner.

        Args:
            part: A part of a grade, such as "colour".

        Returns:
            In [0, 1].
        """
        return float(np.trapezoid(self.shares[part], self.weakened) / self.weakened[-1])

    def selectivity(self, part: str) -> float:
        """How much sooner a part is lost than the other parts on average; above 0 is selective.

        Args:
            part: The attribute whose heads were weakened.

        Returns:
            Difference of mean shares, in [-1, 1].
        """
        others = [self.area(name) for name in self.shares if name not in (part, "all", "count")]
        return float(np.mean(others)) - self.area(part)


def weakening_curve(
    weakened: Weakened[Head],
    order: Sequence[Head],
    captions: Sequence[str],
    *,
    counts: Sequence[int],
) -> WeakeningCurve:
    """Weaken more and more heads in a given order and grade what is drawn.

    A good head relevance puts the heads of its attribute first: the attribute's curve falls early
    and the others stay. Compare with a random order and with the reverse.

    Args:
        weakened: Draws with some heads weakened.
        order: Heads, those that should matter most first.
        captions: What to draw.
        counts: How many heads to weaken at each point, ascending; 0 is put before them if missing.

    Returns:
        The curve.

    Raises:
        ValueError: If more heads are to be weakened than there are.
    """
    counts = sorted({0, *counts})
    if counts[-1] > len(order):
        raise ValueError(f"cannot weaken {counts[-1]} of {len(order)} heads; give smaller counts")
    points: list[dict[str, float]] = []
    for count in counts:
        images = weakened(captions, order[:count])
        grades = [grade(i, c).parts for i, c in zip(images, captions, strict=True)]
        said = {part for parts in grades for part, right in parts.items() if right is not None}
        verdicts = {part: [bool(p[part]) for p in grades if p[part] is not None] for part in said}
        points.append({part: float(np.mean(right)) for part, right in verdicts.items()})
    shares = {part: tuple(point[part] for point in points) for part in sorted(points[0])}
    return WeakeningCurve(tuple(counts), shares)


def attribute_score(part: str) -> Callable[[Sequence[Any], Sequence[str]], list[float]]:
    """A score for `analyses.ordered_weakening`: is the attribute drawn as the caption says?

    Args:
        part: A part of a grade, such as "colour", "relation" or "all".

    Returns:
        A function of images (PIL or arrays) and captions: 1 where the part is right, 0 where it is
        wrong, nan where the caption says nothing about it.

    Raises:
        ValueError: When it runs, if there is no such part.
    """

    def score(images: Sequence[Any], captions: Sequence[str]) -> list[float]:
        found = []
        for image, caption in zip(images, captions, strict=True):
            pixels = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
            parts = grade(pixels, caption).parts
            if part not in parts:
                raise ValueError(f"a grade has no part {part!r}; it has {', '.join(parts)}")
            right = parts[part]
            found.append(float("nan") if right is None else float(right))
        return found

    return score


def captions_naming(*parts: str) -> list[str]:
    """The held-out captions that say something about each of some attributes.

    Args:
        *parts: "size", "texture", "colour", "shape", "background" or "relation".

    Returns:
        Captions, shuffled, the same at every call.
    """
    captions = [one.caption for one in test_captions()]
    said = [text for text in captions if all(_names(read_caption(text), part) for part in parts)]
    order = np.random.default_rng(0).permutation(len(said))
    return [said[place] for place in order]


def _names(caption: Caption, part: str) -> bool:
    if part == "relation":
        return bool(caption.relation or caption.axis or caption.place)
    if part == "background":
        return caption.background is not None
    return any(getattr(thing, part) for thing in caption.things)
