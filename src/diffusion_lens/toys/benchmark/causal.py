"""Interventions, scored by a grader: is the target attribute gone, and the rest still there?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from jaxtyping import UInt8

from diffusion_lens.errors import refuse_unknown
from diffusion_lens.toys.shapes.captions import CaptionError, read_caption, write_caption
from diffusion_lens.toys.shapes.grading import Grade, grade
from diffusion_lens.toys.shapes.world import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES

Images = UInt8[np.ndarray, "batch height width rgb"]
Generator = Callable[[Sequence[str]], Images]
"""One image for each caption, from the same noise at every call; an intervention is another one."""

REPLACEABLE: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "size": tuple(size for size in SIZES if size != "medium"),
        "texture": TEXTURES,
        "colour": tuple(COLOURS),
        "shape": SHAPES,
        "background": tuple(BACKGROUNDS),
    }
)
"""What `replaced` can say something else about, and the words that it can say."""

TARGETS = ("size", "texture", "colour", "shape", "background", "relation")


@dataclass(frozen=True)
class CausalScore:
    """What an intervention does to one attribute, over captions that went right without it.

    Args:
        count: Captions that the model got right before.
        lost: Share of them in which the target attribute is no longer as the caption says.
        kept: Share in which everything else that the caption says still is.
        specific: Share in which both hold: the attribute is lost and nothing else is.
        changed: Share in which the attribute is now what it was to become; None where nothing was.
    """

    count: int
    lost: float
    kept: float
    specific: float
    changed: float | None


def _others(one: Grade, target: str) -> bool:
    rest = {part: right for part, right in one.parts.items() if part not in (target, "all")}
    return False not in rest.values()


def replaced(caption: str, *, target: str, word: str) -> str:
    """A caption that says `word` where another said something else about the target.

    Args:
        caption: A full caption.
        target: A key of `REPLACEABLE`; of the first object where it is no background.
        word: What it should say instead, one of the target's words.

    Returns:
        The other caption.

    Raises:
        CaptionError: If target or word are unknown, or the caption says nothing about the target.
    """
    refuse_unknown("target", target, REPLACEABLE, error=CaptionError)
    refuse_unknown("word", word, REPLACEABLE[target], error=CaptionError)
    said = read_caption(caption)
    if target == "background" and said.background:
        return write_caption(replace(said, background=word))
    first = said.things[0] if said.things else None
    if first is None or getattr(first, target, None) is None:
        raise CaptionError(f"{caption!r} says no {target} that could become {word!r}")
    other = replace(first, **{target: word})
    return write_caption(replace(said, things=(other, *said.things[1:])))


def score_intervention(
    plain: Generator,
    intervened: Generator,
    captions: Sequence[str],
    *,
    target: str,
    becomes: Sequence[str] | None = None,
) -> CausalScore:
    """Compare images with and without an intervention, from the same captions and noise.

    Captions that the model gets wrong by itself are left out: nothing can be lost there. A large
    `lost` with a small `kept` is damage, not a finding about the attribute.

    Args:
        plain: Draws without the intervention.
        intervened: Draws with it.
        captions: What to draw; each says something about the target.
        target: A part of `TARGETS`.
        becomes: For each caption the one that should be true afterwards, if the intervention is to
            change the attribute and not only to destroy it.

    Returns:
        The shares, nan where no caption went right before.

    Raises:
        CaptionError: If the target is unknown, or a caption says nothing about it.
        ValueError: If there are not as many images, or captions in `becomes`, as captions.
    """
    refuse_unknown("target", target, TARGETS, error=CaptionError)
    if becomes is not None and len(becomes) != len(captions):
        raise ValueError(f"{len(becomes)} captions to become for {len(captions)} captions")
    before = [grade(i, c) for i, c in zip(plain(captions), captions, strict=True)]
    for caption, one in zip(captions, before, strict=True):
        if one.parts[target] is None:
            raise CaptionError(f"{caption!r} says no {target}, which is the target")
    images = intervened(captions)
    if len(images) != len(captions):
        raise ValueError(
            f"the intervention gives {len(images)} images for {len(captions)} captions"
        )
    right = [place for place, one in enumerate(before) if one.right and one.parts[target]]
    after = {place: grade(images[place], captions[place]) for place in right}
    lost = {place: one.parts[target] is False for place, one in after.items()}
    kept = {place: _others(one, target) for place, one in after.items()}
    changed = None
    if becomes is not None:
        changed = _share([grade(images[p], becomes[p]).parts[target] is True for p in right])
    return CausalScore(
        count=len(right),
        lost=_share(list(lost.values())),
        kept=_share(list(kept.values())),
        specific=_share([lost[place] and kept[place] for place in right]),
        changed=changed,
    )


def _share(verdicts: Sequence[bool]) -> float:
    return float(np.mean(verdicts)) if verdicts else float("nan")


def causal_table(scores: Mapping[str, CausalScore]) -> str:
    """Interventions side by side as a Markdown table.

    Args:
        scores: Name of an intervention to its score.

    Returns:
        The table, shares in per cent.
    """
    lines = ["| intervention | n | lost | others kept | lost alone | changed |", "|---" * 6 + "|"]
    for name, score in scores.items():
        shares = (score.lost, score.kept, score.specific, score.changed)
        cells = ["" if share is None else f"{100 * share:.1f}" for share in shares]
        lines.append(f"| {name} | {score.count} | {' | '.join(cells)} |")
    return "\n".join(lines)
