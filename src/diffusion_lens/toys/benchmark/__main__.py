"""The benchmark's baselines on the shipped models: `python -m diffusion_lens.toys.benchmark`."""

import argparse
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from diffusion_lens.toys.benchmark.baselines import centred_disc, exact_on_grid, random_map
from diffusion_lens.toys.benchmark.causal import causal_table, replaced, score_intervention
from diffusion_lens.toys.benchmark.heads import heads_off, random_order, text_heads
from diffusion_lens.toys.benchmark.patterns import raw_pattern
from diffusion_lens.toys.benchmark.polysemy import score_polysemy
from diffusion_lens.toys.benchmark.segmentation import (
    SaliencyMethod,
    score_segmentation,
    segmentation_table,
    segmentation_tasks,
)
from diffusion_lens.toys.benchmark.weakening import weakening_curve
from diffusion_lens.toys.generating import generate
from diffusion_lens.toys.loading import card, load, names
from diffusion_lens.toys.shapes.captions import read_caption
from diffusion_lens.toys.shapes.evaluation import test_captions

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def segmentation(pipe: "DiffusionPipeline", *, level: float, count: int) -> str:
    """The table of baselines and upper bounds at one noise level.

    Args:
        pipe: A toy pipeline.
        level: Noise level in [0, 1].
        count: Scenes of two objects.

    Returns:
        Markdown.
    """
    methods: dict[str, SaliencyMethod] = {
        "random map": random_map,
        "centred disc": centred_disc,
        "raw text-to-image pattern": raw_pattern(pipe),
        "exact mask on 8 x 8 cells": exact_on_grid(8),
        "exact mask on 16 x 16 cells": exact_on_grid(16),
    }
    tasks = segmentation_tasks(count, noise_level=level)
    scores = {name: score_segmentation(method, tasks) for name, method in methods.items()}
    return segmentation_table(scores)


def causal(pipe: "DiffusionPipeline", *, count: int, settings: dict[str, Any]) -> str:
    """The table of what changing the colour does: by nothing, by other words, by random heads.

    Args:
        pipe: A toy pipeline.
        count: Captions of one object.
        settings: Of `generate`.

    Returns:
        Markdown.
    """
    single = [c.caption for c in test_captions() if c.group == "single"]
    captions = [c for c in single if read_caption(c).things[0].colour not in (None, "blue")]
    captions = captions[:count]
    becomes = [replaced(caption, target="colour", word="blue") for caption in captions]
    plain = partial(generate, pipe, **settings)
    some = random_order(text_heads(pipe))[: len(text_heads(pipe)) // 4]
    off = heads_off(pipe, **settings)
    interventions = {
        "nothing": plain,
        "a quarter of the heads, at random, off": lambda captions: off(captions, some),
        "the caption says blue (upper bound)": lambda _: plain(becomes),
    }
    scores = {
        name: score_intervention(plain, change, captions, target="colour", becomes=becomes)
        for name, change in interventions.items()
    }
    return causal_table(scores)


def weakening(pipe: "DiffusionPipeline", *, count: int, settings: dict[str, Any]) -> str:
    """The curve of every attribute as more and more random heads are switched off.

    Args:
        pipe: A toy pipeline.
        count: Captions of one object.
        settings: Of `generate`.

    Returns:
        Markdown.
    """
    captions = [c.caption for c in test_captions() if c.group == "single"][:count]
    heads = random_order(text_heads(pipe))
    counts = [len(heads) * quarter // 4 for quarter in range(5)]
    curve = weakening_curve(heads_off(pipe, **settings), heads, captions, counts=counts)
    lines = [f"| heads off | {' | '.join(map(str, curve.weakened))} |"]
    lines.append("|---" * (len(curve.weakened) + 1) + "|")
    for part, shares in curve.shares.items():
        lines.append(f"| {part} | {' | '.join(f'{100 * share:.1f}' for share in shares)} |")
    return "\n".join(lines)


def main() -> None:
    """Print every part of the benchmark for the shipped models."""
    parser = argparse.ArgumentParser(prog="python -m diffusion_lens.toys.benchmark")
    parser.add_argument("--model", action="append", choices=names(), help="default: all")
    parser.add_argument("--count", type=int, default=60, help="scenes or captions of each part")
    parser.add_argument("--noise", type=float, action="append", help="default: 0.2, 0.5, 0.8")
    arguments = parser.parse_args()
    count, write = arguments.count, sys.stdout.write
    for name in arguments.model or names():
        pipe, facts = load(name), card(name)
        settings = {"guidance": facts["guidance"], "steps": facts["sample_steps"]}
        for level in arguments.noise or (0.2, 0.5, 0.8):
            table = segmentation(pipe, level=level, count=count)
            write(f"\n{name}, noise level {level}: mAP / mIoU / pixel accuracy\n\n{table}\n")
        write(f"\n{name}, colour:\n\n{causal(pipe, count=count, settings=settings)}\n")
        table = weakening(pipe, count=count, settings=settings)
        write(f"\n{name}, heads switched off in random order:\n\n{table}\n")
        read = score_polysemy(partial(generate, pipe, **settings))
        for sense in ("fruit", "colour"):
            write(
                f"\n'orange' as {sense}, {read.count[sense]} prompts: "
                f"misread {100 * read.misread[sense]:.1f} %, "
                f"nothing orange {100 * read.missing[sense]:.1f} %"
            )
        write(f"\n'orange' alone: the fruit in {100 * read.fruit:.1f} %\n")


if __name__ == "__main__":
    main()
