"""Edits of images, scored by a grader: is the attribute what was asked, and the rest as it was?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from diffusion_lens.toys.benchmark.causal import REPLACEABLE, replaced
from diffusion_lens.toys.shapes.captions import read_caption
from diffusion_lens.toys.shapes.finding import find_things
from diffusion_lens.toys.shapes.grading import grade
from diffusion_lens.toys.shapes.scenes import pick
from diffusion_lens.toys.shapes.world import BACKGROUNDS, COLOURS, HELD_OUT_PAIRS, SHAPES

ATTRIBUTES = ("colour", "shape", "texture")


@dataclass(frozen=True)
class EditTask:
    """A source caption with one edit of each attribute.

    Args:
        source: What the source image shows: one object.
        targets: By attribute, the caption that differs in it.
        words: By attribute, the word that is there and the word that it becomes.
        seed: Of the noise.
    """

    source: str
    targets: Mapping[str, str]
    words: Mapping[str, tuple[str, str]]
    seed: int


Editor = Callable[[EditTask], Sequence[Image.Image]]
"""The source image, then one for each target in the order of `ATTRIBUTES`."""


def edit_tasks(count: int, *, seed: int = 0) -> tuple[EditTask, ...]:
    """Captions of one object with edits to other words that training showed together.

    Args:
        count: How many sources; each has an edit of every attribute.
        seed: Of the draw; the noise of task i has the seed i.

    Returns:
        The tasks.

    Raises:
        ValueError: If there is to be none.
    """
    if count < 1:
        raise ValueError(f"{count} tasks: there is at least one")
    rng = np.random.default_rng(seed)
    tasks: list[EditTask] = []
    while len(tasks) < count:
        said = {
            "texture": pick(rng, ("striped", "dotted")),
            "colour": pick(rng, tuple(COLOURS)),
            "shape": pick(rng, SHAPES),
        }
        becomes = {
            name: pick(rng, [word for word in REPLACEABLE[name] if word != said[name]])
            for name in ATTRIBUTES
        }
        pairs = [
            (said["colour"], said["shape"]),
            (becomes["colour"], said["shape"]),
            (said["colour"], becomes["shape"]),
        ]
        background = pick(rng, tuple(BACKGROUNDS))
        if any(pair in HELD_OUT_PAIRS for pair in pairs):
            continue
        article = "an" if said["texture"][0] in "aeiou" else "a"
        phrase = f"{said['texture']} {said['colour']} {said['shape']}"
        source = f"{article} {phrase} on a {background} background"
        tasks.append(
            EditTask(
                source,
                {name: replaced(source, target=name, word=becomes[name]) for name in ATTRIBUTES},
                {name: (said[name], becomes[name]) for name in ATTRIBUTES},
                seed=len(tasks),
            )
        )
    return tuple(tasks)


@dataclass(frozen=True)
class EditScore:
    """What an editor does to one attribute.

    Args:
        count: Edits of source images that are as their caption says.
        changed: Share of them in which the attribute is what it was to become.
        kept: Share in which everything else is still as the source's caption says.
        both: Share in which both hold.
        moved: Mean absolute difference of the pixels outside the object, in [0, 1]; the object is
            where either image has it.
        intervals: The 95 % intervals of these four, by name.
    """

    count: int
    changed: float
    kept: float
    both: float
    moved: float
    intervals: Mapping[str, tuple[float, float]]


def outside(*images: UInt8[np.ndarray, "height width rgb"]) -> Bool[np.ndarray, "height width"]:
    """The pixels in which no image has an object, by the exact finder."""
    inside = np.zeros(images[0].shape[:2], bool)
    for image in images:
        for thing in find_things(image)[1]:
            inside |= thing.mask
    return ~inside


def score_edits(editor: Editor, tasks: Sequence[EditTask]) -> dict[str, EditScore]:
    """Edit every source and grade what comes out.

    Args:
        editor: The method.
        tasks: What to edit.

    Returns:
        A score for each attribute.

    Raises:
        ValueError: If no source image is as its caption says, or an editor gives too few images.
    """
    rows: dict[str, list[tuple[bool, bool, float]]] = {name: [] for name in ATTRIBUTES}
    for task in tasks:
        source, *edits = [np.asarray(image.convert("RGB")) for image in editor(task)]
        if len(edits) != len(ATTRIBUTES):
            raise ValueError(
                f"the editor gave {len(edits)} edits of {task.source!r}, there are the attributes "
                f"{ATTRIBUTES}; give the source image, then one for each"
            )
        if not grade(source, task.source).right:
            continue
        for name, edited in zip(ATTRIBUTES, edits, strict=True):
            found = grade(edited, task.targets[name])
            rest = {part: right for part, right in found.parts.items() if part not in (name, "all")}
            background = outside(source, edited)
            difference = np.abs(source.astype(float) - edited.astype(float)).mean(-1) / 255
            rows[name].append(
                (
                    bool(found.parts[name]),
                    False not in rest.values(),
                    float(difference[background].mean()) if background.any() else 0.0,
                )
            )
    if not all(rows.values()):
        raise ValueError(
            f"none of {len(tasks)} source images is as its caption says, so that there is nothing "
            "to edit; give more tasks or more steps"
        )
    return {name: _score(found) for name, found in rows.items()}


def _score(rows: Sequence[tuple[bool, bool, float]]) -> EditScore:
    changed, kept, moved = (np.array(column, float) for column in zip(*rows, strict=True))
    shares = {"changed": changed, "kept": kept, "both": changed * kept}
    intervals = {name: wilson(float(column.mean()), len(rows)) for name, column in shares.items()}
    return EditScore(
        count=len(rows),
        **{name: float(column.mean()) for name, column in shares.items()},
        moved=float(moved.mean()),
        intervals={**intervals, "moved": _bootstrap(moved)},
    )


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share; it has a width where the share is 0 or 1, too.

    Args:
        share: In [0, 1].
        count: Of how many.
    """
    z = 1.96
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    spread = (share * (1 - share) / count + (z / (2 * count)) ** 2) ** 0.5
    half = z / (1 + z * z / count) * spread
    return max(0.0, centre - half), min(1.0, centre + half)


def _bootstrap(values: np.ndarray) -> tuple[float, float]:
    """95 % of the means of values drawn with replacement."""
    rng = np.random.default_rng(0)
    means = rng.choice(values, (2000, len(values))).mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def editing_table(scores: Mapping[str, Mapping[str, EditScore]]) -> str:
    """Scores of several editors as markdown.

    Args:
        scores: By method, what `score_edits` gave.
    """
    lines = [
        "| method | attribute | edits | changed | rest kept | both | outside moved |",
        "|---" * 7 + "|",
    ]
    for method, found in scores.items():
        for name, score in found.items():
            cells = [
                f"{100 * getattr(score, one):.0f} % "
                f"({100 * score.intervals[one][0]:.0f} to {100 * score.intervals[one][1]:.0f})"
                for one in ("changed", "kept", "both")
            ]
            low, high = score.intervals["moved"]
            cells.append(f"{score.moved:.3f} ({low:.3f} to {high:.3f})")
            lines.append(f"| {method} | {name} | {score.count} | {' | '.join(cells)} |")
    return "\n".join(lines)


def neglected(images: Sequence[Image.Image], captions: Sequence[str]) -> list[bool]:
    """Whether each image lacks a thing that its caption names, or shows it wrongly.

    Args:
        images: The images.
        captions: Captions of two things each.
    """
    found = []
    for image, caption in zip(images, captions, strict=True):
        seen = grade(np.asarray(image.convert("RGB")), caption)
        assert len(read_caption(caption).things) == 2
        found.append(not all(thing.found and thing.right for thing in seen.things))
    return found
