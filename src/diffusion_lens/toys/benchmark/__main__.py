"""The benchmark's baselines on the shipped models: `python -m diffusion_lens.toys.benchmark`."""

import argparse
import sys
from functools import partial

from diffusion_lens.toys.benchmark.baselines import centred_disc, exact_on_grid, random_map
from diffusion_lens.toys.benchmark.patterns import raw_pattern
from diffusion_lens.toys.benchmark.polysemy import score_polysemy
from diffusion_lens.toys.benchmark.segmentation import (
    SaliencyMethod,
    score_segmentation,
    segmentation_table,
    segmentation_tasks,
)
from diffusion_lens.toys.generating import generate
from diffusion_lens.toys.loading import card, load, names


def main() -> None:
    """Print a segmentation table for each noise level and the polysemy shares."""
    parser = argparse.ArgumentParser(prog="python -m diffusion_lens.toys.benchmark")
    parser.add_argument("--model", action="append", choices=names(), help="default: all")
    parser.add_argument("--count", type=int, default=60, help="scenes at each noise level")
    parser.add_argument("--noise", type=float, action="append", help="default: 0.2, 0.5, 0.8")
    arguments = parser.parse_args()
    for name in arguments.model or names():
        pipe, facts = load(name), card(name)
        methods: dict[str, SaliencyMethod] = {
            "random map": random_map,
            "centred disc": centred_disc,
            "raw text-to-image pattern": raw_pattern(pipe),
            "exact mask on 8 x 8 cells": exact_on_grid(8),
            "exact mask on 16 x 16 cells": exact_on_grid(16),
        }
        for level in arguments.noise or (0.2, 0.5, 0.8):
            tasks = segmentation_tasks(arguments.count, noise_level=level)
            scores = {key: score_segmentation(method, tasks) for key, method in methods.items()}
            sys.stdout.write(
                f"\n{name}, noise level {level}, {len(tasks)} scenes of two objects: "
                f"mAP / mIoU / pixel accuracy\n\n{segmentation_table(scores)}\n"
            )
        guidance, steps = facts["guidance"], facts["sample_steps"]
        read = score_polysemy(partial(generate, pipe, guidance=guidance, steps=steps))
        for sense in ("fruit", "colour"):
            sys.stdout.write(
                f"\n'orange' as {sense}, {read.count[sense]} prompts: "
                f"misread {100 * read.misread[sense]:.1f} %, "
                f"nothing orange {100 * read.missing[sense]:.1f} %"
            )
        sys.stdout.write(f"\n'orange' alone: the fruit in {100 * read.fruit:.1f} %\n")


if __name__ == "__main__":
    main()
