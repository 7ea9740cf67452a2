"""The fixed captions on which the toy models are graded, and the shares that they get right."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

import numpy as np
from jaxtyping import UInt8

from diffusion_lens.showing.one_line import counted
from diffusion_lens.toys.shapes.grading import Grade, grade
from diffusion_lens.toys.shapes.sampling import (
    Example,
    full_caption,
    has_held_out_pair,
    held_out,
)
from diffusion_lens.toys.shapes.scenes import sample_pair, sample_single

GROUPS: Mapping[str, int] = MappingProxyType(
    {"single": 90, "single, new pair": 60, "pair": 250, "pair, new pair": 100}
)
"""How many captions of each group: one or two objects; seen or held-out colour-shape pairs."""

PARTS = ("all", "count", "colour", "shape", "texture", "size", "background", "relation")


@dataclass(frozen=True)
class TestCaption:
    """A caption that training never sees.

    Args:
        caption: The text.
        group: A key of `GROUPS`.
    """

    __test__ = False

    caption: str
    group: str


@lru_cache(maxsize=1)
def test_captions() -> tuple[TestCaption, ...]:
    """The 500 held-out captions, all different, the same at every call.

    Captions of seen pairs are held out as texts; those of new pairs have a colour on a shape that
    training never shows, alone or as one of two objects.

    Returns:
        The captions, group after group.
    """
    rng = np.random.default_rng(2026)
    chosen: dict[str, list[str]] = {group: [] for group in GROUPS}
    while any(len(chosen[group]) < count for group, count in GROUPS.items()):
        scene = sample_single(rng) if rng.random() < 0.5 else sample_pair(rng)
        example = Example(scene, full_caption(scene, rng=rng))
        group = "single" if len(scene.things) == 1 else "pair"
        group += ", new pair" if has_held_out_pair(scene) else ""
        known = chosen[group]
        if held_out(example) and example.caption not in known and len(known) < GROUPS[group]:
            known.append(example.caption)
    return tuple(TestCaption(text, group) for group in GROUPS for text in chosen[group])


setattr(test_captions, "__test__", False)  # noqa: B010


@dataclass(frozen=True)
class Report:
    """Shares of right images.

    Args:
        shares: Group to part (of `PARTS`) to share in [0, 1]; absent where no caption says it.
        counts: Group to number of images.
    """

    shares: Mapping[str, Mapping[str, float]]
    counts: Mapping[str, int]

    def table(self) -> str:
        """The shares as a Markdown table, in per cent."""
        lines = [f"| captions | n | {' | '.join(PARTS)} |", "|---" * (len(PARTS) + 2) + "|"]
        for group, parts in self.shares.items():
            cells = [f"{100 * parts[part]:.1f}" if part in parts else "" for part in PARTS]
            lines.append(f"| {group} | {self.counts[group]} | {' | '.join(cells)} |")
        return "\n".join(lines)


def _shares(grades: Sequence[Grade]) -> dict[str, float]:
    shares = {}
    for part in PARTS:
        verdicts = [g.parts[part] for g in grades if g.parts[part] is not None]
        if verdicts:
            shares[part] = sum(map(bool, verdicts)) / len(verdicts)
    return shares


def grade_images(
    images: UInt8[np.ndarray, "batch height width rgb"], captions: Sequence[TestCaption]
) -> Report:
    """Grade one image for each caption.

    Args:
        images: RGB, 0 to 255.
        captions: What each should show.

    Returns:
        The shares of each group, and of "single, all" and "pair, all" together.

    Raises:
        ValueError: If there are not as many images as captions.
    """
    if len(images) != len(captions):
        raise ValueError(
            f"{counted(len(images), 'image')} for {counted(len(captions), 'caption')}; give one "
            "for each"
        )
    grades = [
        (one.group, grade(image, one.caption)) for image, one in zip(images, captions, strict=True)
    ]
    sets = {group: [g for name, g in grades if name == group] for group in GROUPS}
    for kind in ("single", "pair"):
        sets[f"{kind}, all"] = sets[kind] + sets[f"{kind}, new pair"]
    sets = {group: members for group, members in sets.items() if members}
    return Report(
        {group: _shares(members) for group, members in sets.items()},
        {group: len(members) for group, members in sets.items()},
    )
