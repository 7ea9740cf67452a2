"""`diffusion-lens hrv weaken`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from diffusion_lens.border import Count, Number
from diffusion_lens.cli.checks import refuse_unread, within
from diffusion_lens.cli.command import Call, command
from diffusion_lens.cli.folders import Finding
from diffusion_lens.cli.hrv.saved import Relevance, loaded
from diffusion_lens.cli.loading import listed_numbers, seeds_of
from diffusion_lens.cli.messages import fail


@command()
def weaken(
    call: Call,
    relevance: Relevance,
    prompts: Annotated[list[str], typer.Argument(help="What to draw.")],
    concept: Annotated[str, typer.Option(help="Whose vector orders the heads.")],
    order: Annotated[
        list[str], typer.Option(help="most, least or random relevant first. Repeatable.")
    ] = ["most", "least", "random"],  # noqa: B006
    counts: Annotated[
        str | None, typer.Option(help="How many heads at each point; the published grid.")
    ] = None,
    factor: Annotated[
        float, typer.Option(help="On the attention to the words.", callback=within(Number))
    ] = -2.0,
    seeds: Annotated[
        str, typer.Option(help="With how many seeds every prompt is drawn (from 0 on), or which.")
    ] = "1",
    random_orders: Annotated[
        int | None,
        typer.Option(help="How many random orders; 3 by default.", callback=within(Count)),
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(
            help="clip, none, or for toys a graded part such as colour; clip by default, for toys "
            "all."
        ),
    ] = None,
    clip: Annotated[
        str | None, typer.Option(help="Id or folder of another CLIP model than the published.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option(help="Prompts drawn at once.", callback=within(Count))
    ] = 1,
) -> Finding:
    """Weaken more and more heads in the order of their relevance, and score what is drawn."""
    vectors = loaded(relevance)
    if score is None:
        score = "all" if call.is_toy else "clip"
    refuse_unread({"--clip": clip}, unless="--score clip", read=score == "clip")
    of_random = {"--random-orders": random_orders}
    refuse_unread(of_random, unless="--order random", read="random" in order)
    _refuse_ungraded(score, prompts, of_toy=call.is_toy)

    from diffusion_lens.analyses import ordered_weakening

    curves = call.run(
        ordered_weakening,
        prompts,
        vectors,
        concept=concept,
        score=_score(score, clip, device=call.device),
        factor=factor,
        order=order,
        counts=listed_numbers(counts, "counts"),
        seeds=seeds_of(seeds),
        random_orders=random_orders or 3,
        batch_size=batch_size,
        keep_images=True,
    )
    return Finding(
        f"Weakening: {concept}",
        curves,
        [_strip(curves)] if score == "none" else [curves.plot(), _strip(curves)],
        rows=_points(curves),
        pictures={"image": _first_images(curves)},
    )


def _refuse_ungraded(score: str, prompts: list[str], *, of_toy: bool) -> None:
    """Refuse a score that no picture of these prompts could get."""
    if score in ("clip", "none"):
        return
    if not of_toy:
        fail(f"--score {score!r}: give clip or none; graded parts are for toy models")
    import numpy as np

    from diffusion_lens.toys.shapes.grading import grade

    for prompt in prompts:
        parts = grade(np.zeros((32, 32, 3), np.uint8), prompt).parts
        if score not in parts:
            fail(f"--score {score!r} is none of clip, none, {', '.join(parts)}")


def _score(name: str, clip: str | None, *, device: str | None) -> Any:
    if name == "none":
        return lambda images, _texts: [float("nan")] * len(images)
    if name == "clip":
        from diffusion_lens.metrics.alignment import OPENCLIP_H14, ClipScore

        try:
            return ClipScore.load(clip or OPENCLIP_H14, device=device or "cpu")
        except Exception as error:  # see `load`
            reason = error if isinstance(error, OSError | ValueError) else repr(error)
            fail(f"cannot load the CLIP model: {reason}\nGive --clip, or --score none.")
    from diffusion_lens.toys.benchmark.weakening import attribute_score

    return {name: attribute_score(name)}


def _points(curves: Any) -> list[dict[str, Any]]:
    return [
        {"order": order, "score": name, "weakened": count, "mean": float(value)}
        for order in curves.scores
        for name in curves.score_names
        for count, value in zip(curves.counts, curves.curve(order, name), strict=True)
    ]


def _first_images(curves: Any) -> list[Any]:
    """The first sample at each point of each order."""
    return [point[0] for images in curves.images.values() for point in images[0]]


def _strip(curves: Any) -> Any:
    from diffusion_lens import viz

    captions = [f"{order}: {count}" for order in curves.images for count in curves.counts]
    return viz.image_strip(_first_images(curves), captions=captions, rows=len(curves.images))
