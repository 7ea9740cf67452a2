"""Saliency maps against exact masks: noised renders of held-out scenes, one map for each phrase."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

from diffusion_lens.metrics.segmentation import (
    above_mean,
    confusion,
    mean_average_precision,
    miou_fg_bg,
    pixel_accuracy,
)
from diffusion_lens.toys.shapes.captions import read_caption
from diffusion_lens.toys.shapes.render import render
from diffusion_lens.toys.shapes.sampling import Example, full_caption, held_out
from diffusion_lens.toys.shapes.scenes import sample_pair, sample_single
from diffusion_lens.toys.shapes.world import FRUIT, RESOLUTION

KINDS = ("object", "colour", "shape", "texture", "background")


@dataclass(frozen=True)
class Query:
    """One thing to find in an image.

    Args:
        kind: A word of `KINDS`. An object is asked for by all of its words together.
        words: Indices of the caption's words, counted from 0 without any tokenizer's marks.
        mask: Where it is.
    """

    kind: str
    words: tuple[int, ...]
    mask: Bool[np.ndarray, "height width"]


@dataclass(frozen=True)
class Task:
    """A render with what a method may know of it; only `queries[...].mask` is secret.

    Args:
        image: RGB, 0 to 255.
        caption: The full caption.
        noise_level: Timestep over the number of training timesteps, in [0, 1].
        seed: Of the noise.
        queries: What is asked for; a method answers with one map each, in order.
    """

    image: UInt8[np.ndarray, "height width rgb"]
    caption: str
    noise_level: float
    seed: int
    queries: tuple[Query, ...]


SaliencyMethod = Callable[[Task], Float[np.ndarray, "query rows columns"]]
"""A map for each query, of any resolution and scale; more means more salient."""


def _queries(example: Example) -> tuple[Query, ...]:
    drawn = render(example.scene)
    said = read_caption(example.caption)
    words = example.caption.split()
    queries, place = [], 0
    for thing, mask in zip(said.things, drawn.things, strict=True):
        place += 1  # the article
        parts = {
            kind: place + order
            for order, kind in enumerate(k for k, word in vars(thing).items() if word)
        }
        queries.append(Query("object", tuple(parts.values()), mask))
        for kind in ("colour", "shape", "texture"):
            plain = kind == "texture" and thing.texture == "plain"
            if kind in parts and not plain:
                queries.append(Query(kind, (parts[kind],), mask))
        place += len(parts) + len((said.relation or "").split())
    ends = (len(words) - 2, len(words) - 1)
    return (*queries, Query("background", ends, drawn.background))


def segmentation_tasks(
    count: int, *, noise_level: float, pairs: bool = True, seed: int = 0
) -> tuple[Task, ...]:
    """Renders of scenes whose captions training never saw.

    Args:
        count: How many.
        noise_level: How much noise a method is to add, in [0, 1].
        pairs: Two objects in each scene, else one.
        seed: Of the scenes; the noise of each follows from it.

    Returns:
        The tasks. The fruit is left out: its word is both its colour and its shape.

    Raises:
        ValueError: If there is to be no task, or if the noise level is outside [0, 1].
    """
    if count < 1 or not 0 <= noise_level <= 1:
        raise ValueError(
            f"{count} tasks at noise_level={noise_level}; there is at least one, and the level "
            "lies between 0 (clean) and 1 (noise)"
        )
    rng = np.random.default_rng(seed)
    tasks: list[Task] = []
    while len(tasks) < count:
        scene = sample_pair(rng) if pairs else sample_single(rng)
        example = Example(scene, full_caption(scene, rng=rng))
        if held_out(example) and all(thing.shape != FRUIT for thing in scene.things):
            image = render(scene, rng=rng).image
            noise_seed = 1000 * seed + len(tasks)
            tasks.append(Task(image, example.caption, noise_level, noise_seed, _queries(example)))
    return tuple(tasks)


def enlarge(
    saliency: Float[np.ndarray, "rows columns"], *, size: int = RESOLUTION
) -> Float[np.ndarray, "height width"]:
    """Repeat a map's cells up to the size of the image; nothing is smoothed.

    Args:
        saliency: A square map whose side divides `size`.
        size: Side of the image in pixels.

    Returns:
        The map at the image's resolution.

    Raises:
        ValueError: If the map does not fit.
    """
    rows, columns = saliency.shape
    if size % rows or rows != columns:
        raise ValueError(f"a map of {rows} x {columns} cells does not tile {size} x {size} pixels")
    return saliency.repeat(size // rows, 0).repeat(size // columns, 1)


@dataclass(frozen=True)
class SegmentationScore:
    """How well maps find one kind of thing.

    Args:
        count: Queries.
        average_precision: Mean over queries.
        miou: Mean of the IoU inside and outside the masks, pixels pooled over queries, each map
            cut at its own mean.
        accuracy: Share of pixels on the right side of that cut.
    """

    count: int
    average_precision: float
    miou: float
    accuracy: float


def score_segmentation(
    method: SaliencyMethod, tasks: Sequence[Task]
) -> Mapping[str, SegmentationScore]:
    """Score a method on every kind of query.

    Args:
        method: What is scored.
        tasks: What it is asked.

    Returns:
        Kind to score.

    Raises:
        ValueError: If there are no tasks, or the method gives another number of maps than it was
            asked for, maps that do not fit the image, or values that are not finite.
    """
    if not tasks:
        raise ValueError("there are no tasks to score on; `segmentation_tasks` makes them")
    answers: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {kind: [] for kind in KINDS}
    for task in tasks:
        maps = np.asarray(method(task), dtype=np.float64)
        lost = np.count_nonzero(~np.isfinite(maps))
        if maps.ndim != 3 or len(maps) != len(task.queries) or maps.size == 0 or lost:
            raise ValueError(
                f"for {task.caption!r} the method gives an array of shape {maps.shape}, {lost} of "
                f"its values not finite; it is asked for {len(task.queries)} maps, one for each "
                "query, axes query rows columns"
            )
        for query, saliency in zip(task.queries, maps, strict=True):
            answers[query.kind].append((enlarge(saliency), query.mask))
    return {kind: _score(pairs) for kind, pairs in answers.items() if pairs}


def _score(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> SegmentationScore:
    maps, masks = zip(*pairs, strict=True)
    counts = confusion(map(above_mean, maps), masks)
    return SegmentationScore(
        count=len(pairs),
        average_precision=mean_average_precision(maps, masks),
        miou=miou_fg_bg(counts),
        accuracy=pixel_accuracy(counts),
    )


def segmentation_table(scores: Mapping[str, Mapping[str, SegmentationScore]]) -> str:
    """Methods side by side as a Markdown table.

    Args:
        scores: Method to kind to score.

    Returns:
        The table; each cell is mAP / mIoU / pixel accuracy in per cent.
    """
    kinds = [kind for kind in KINDS if any(kind in row for row in scores.values())]
    lines = [f"| method | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    for method, row in scores.items():
        cells = [
            " / ".join(f"{100 * v:.1f}" for v in (s.average_precision, s.miou, s.accuracy))
            for s in (row[kind] for kind in kinds)
        ]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)
