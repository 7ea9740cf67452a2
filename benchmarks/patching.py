"""What a teacher-forced patching sweep over block x head x step x seed costs, for each patch.

    python benchmarks/patching.py [--rounds 5] [--model shapes-unet|shapes-mmdit]

Against one bare evaluation of the denoiser for each patch (batch 1, no hooks, nothing around it),
and against what is done without this library: a whole hooked generation for each patch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from bracketing import bracket, measure_steadily

from diffusion_lens import HookedDiffusion, Site
from diffusion_lens.analyses.patching import activation_patching
from diffusion_lens.analyses.patching.alignment import align
from diffusion_lens.analyses.patching.pair import Pair
from diffusion_lens.analyses.patching.plan import plan
from diffusion_lens.analyses.patching.teacher_forced import TeacherForced
from diffusion_lens.interventions import replace_with
from diffusion_lens.toys import call_defaults, names

CLEAN, CORRUPTED = "a red square", "a blue square"
SITES, AXES = "blocks.*.*.*.hook_z", ("block", "attention", "head")
STEPS, SEEDS = 4, 4
BARE = 10
"""Bare evaluations in one measurement."""


def prepared(model: HookedDiffusion, rows: int, *, restart: bool) -> TeacherForced:
    """A sweep whose trajectory is there and whose prompts are encoded."""
    settings = call_defaults(model.pipe, steps=STEPS)
    pair = Pair.of(CLEAN, CORRUPTED, direction="denoise", seeds=range(SEEDS), settings=settings)
    alignment = align(model, pair.source.run, pair.base.run)
    grid = plan(
        model, SITES, AXES, alignment=alignment, base=pair.base.run, positions=None, branch="cond"
    )
    forced = TeacherForced(model, pair, grid, rows, restart)
    forced.prepare()
    return forced


@torch.no_grad()
def sweep(forced: TeacherForced) -> torch.Tensor:
    """All patches, with the recording of both prompts."""
    places = [(step, seed) for step in range(STEPS) for seed in range(SEEDS)]
    recorded = forced.record(places)
    found = forced.patched(recorded, forced.plan.cells)
    return torch.cat([value.flatten(1).norm(dim=1) for _, value in found])


@torch.no_grad()
def bare(forced: TeacherForced) -> None:
    """Bare evaluations, one row each."""
    arguments = forced.evaluate.arguments(forced.conditions["base"], [(1, 0)])
    for _ in range(BARE):
        forced.model.denoiser(**arguments)


def generation(model: HookedDiffusion) -> Callable[[], Any]:
    """One hooked generation, decoded, which patches one head at one step."""
    settings = call_defaults(model.pipe, steps=STEPS)
    name = next(name for name in model.points if name.endswith("img.hook_z"))
    _, cache = model.run_with_cache(CLEAN, names_filter=name, show_progress=False, **settings)
    hook = Site(name, heads=0, steps=1, branch="cond"), replace_with(cache)
    return partial(model.run_with_hooks, CORRUPTED, fwd_hooks=[hook], **settings)


def measure(name: str, rounds: int) -> None:
    """Measure one toy and print a table."""
    model = HookedDiffusion.toy(name)
    model.pipe.set_progress_bar_config(disable=True)  # type: ignore[union-attr]
    ready = {rows: prepared(model, rows, restart=True) for rows in (8, 16, 32)}
    whole = prepared(model, 16, restart=False)
    patches = len(whole.plan.cells) * STEPS * SEEDS
    difference = float((sweep(ready[16]).sort()[0] - sweep(whole).sort()[0]).abs().max())
    call = partial(
        activation_patching, model, CLEAN, CORRUPTED, sites=SITES, axes=AXES, seeds=range(SEEDS),
        show_progress=False, **call_defaults(model.pipe, steps=STEPS),
    )  # fmt: skip
    runs: dict[str, Callable[[], Any]] = {
        "bare evaluations again (control)": partial(bare, whole),
        "batches of 16 rows, run whole": partial(sweep, whole),
        **{
            f"batches of {rows} rows, restarted": partial(sweep, one) for rows, one in ready.items()
        },
        "activation_patching(), all of it": call,
        "one hooked generation for each patch": generation(model),
    }
    each, ratios = bracket(partial(bare, whole), runs, rounds=rounds)
    print(f"\n{name}: {patches} patches ({len(whole.plan.cells)} heads x {STEPS} steps x {SEEDS} "
          f"seeds), bare evaluation {each / BARE * 1e3:.1f} ms CPU, {rounds} rounds; restarted and "
          f"whole differ by {difference:.1e}")  # fmt: skip
    for what, ratio in ratios.items():
        count = BARE if "control" in what else 1 if "generation" in what else patches
        cost = ratio.median * BARE / count
        error = ratio.error / ratio.median / cost
        print(f"  {what:42s} {1 / cost:5.2f} ± {error:.2f} times as fast ({cost:.2f} evaluations)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", choices=names())
    options = parser.parse_args()
    measure_steadily()
    for chosen in [options.model] if options.model else names():
        measure(chosen, options.rounds)
