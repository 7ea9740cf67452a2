"""Grades of the shipped toy models: `python -m diffusion_lens.toys.grade`."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from diffusion_lens.toys.cards import update_page
from diffusion_lens.toys.generating import call_defaults, generate
from diffusion_lens.toys.loading import CARD, card, checksums, folder, load, names
from diffusion_lens.toys.shapes.evaluation import (
    Report,
    TestCaption,
    grade_images,
    test_captions,
)


def evenly(captions: Sequence[TestCaption], count: int | None) -> tuple[TestCaption, ...]:
    """Some of the captions, spread evenly over all.

    Args:
        captions: All of them.
        count: How many to take; None takes all.

    Returns:
        That many, in order, the first among them.

    Raises:
        ValueError: If there are not that many.
    """
    count = len(captions) if count is None else count
    if not 1 <= count <= len(captions):
        raise ValueError(f"count={count}: there are 1 to {len(captions)} captions to grade")
    return tuple(captions[place * len(captions) // count] for place in range(count))


def grade_model(name: str, *, count: int | None = None, seed: int = 0) -> Report:
    """Generate an image for each held-out caption and grade it.

    Args:
        name: Of the model.
        count: Captions, spread evenly over the 500; None takes all.
        seed: Of the first caption's noise.

    Returns:
        The shares that are right.

    Raises:
        ValueError: If there are not that many captions.
    """
    facts, captions = card(name), evenly(test_captions(), count)
    images = generate(
        load(name),
        [one.caption for one in captions],
        seed=seed,
        guidance=facts["guidance"],
        steps=facts["sample_steps"],
    )
    return grade_images(images, captions)


def timings(name: str) -> dict[str, float]:
    """Seconds that a model takes to load and to draw one image, and its classes to be imported.

    Args:
        name: Of the model.

    Returns:
        "import", "load" and "image" to seconds.
    """
    began = time.perf_counter()
    parts = json.loads((folder(name) / "model_index.json").read_text(encoding="utf-8"))
    for library, part in (found for found in parts.values() if isinstance(found, list)):
        if library is not None:
            getattr(import_module(library), part)
    getattr(import_module("diffusers"), parts["_class_name"])
    imported = time.perf_counter()
    pipe: Any = load(name)
    loaded = time.perf_counter()
    facts = card(name)
    arguments = call_defaults(pipe, guidance=facts["guidance"], steps=facts["sample_steps"])
    pipe("a red square on a white background", **arguments)
    drawn = time.perf_counter()
    return {"import": imported - began, "load": loaded - imported, "image": drawn - loaded}


def main() -> None:
    """Print the grades; optionally keep them beside the weights."""
    parser = argparse.ArgumentParser(prog="python -m diffusion_lens.toys.grade")
    parser.add_argument("--model", action="append", choices=names(), help="default: all")
    parser.add_argument("--count", type=int, help="captions of the 500; default: all")
    parser.add_argument("--write", action="store_true", help="keep the grades beside the weights")
    parser.add_argument("--pages", type=Path, help="folder of model pages to update: docs/toys")
    arguments = parser.parse_args()
    try:
        evenly(test_captions(), arguments.count)
    except ValueError as error:
        parser.error(str(error))
    for name in arguments.model or names():
        seconds = timings(name)
        report = grade_model(name, count=arguments.count)
        sys.stdout.write(
            f"\n{name}: loads in {seconds['load']:.2f} s (its classes, once, in "
            f"{seconds['import']:.2f} s), an image takes {seconds['image']:.2f} s\n\n"
            f"{report.table()}\n"
        )
        sys.stdout.flush()
        if arguments.write:
            facts = card(name) | {"sha256": checksums(folder(name))}
            facts |= {"shares": report.shares, "counts": report.counts}
            text = json.dumps(facts, indent=1, default=dict)
            (folder(name) / CARD).write_text(text + "\n", encoding="utf-8")
        if arguments.pages:
            update_page(arguments.pages / f"{name}.md", card(name))


if __name__ == "__main__":
    main()
