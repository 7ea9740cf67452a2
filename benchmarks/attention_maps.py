"""What attention maps cost: time and held memory, against plain runs and against the eager way.

    python benchmarks/attention_maps.py [--rounds 15] [--model unet|flux]

The eager way is that of tools which replace attention processors: every pattern is computed as
softmax(QKᵀ) beside the output, resized head by head at every call, and kept.

A run of n steps costs n evaluations and, once, what the result takes (resizing, clamping). Both are
measured, the first between plain evaluations; ratios of whole runs of 5 and 50 steps follow from
them. `--whole 5` measures whole runs of that many steps in place of that.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from bracketing import Ratio, bracket, measure_steadily
from held_memory import in_fresh_process, live_bytes
from models import flux, unet
from overhead import BRANCHES
from torch import Tensor

from diffusion_lens import HookedDiffusion
from diffusion_lens.analyses.attention_maps.attention_maps import _middle
from diffusion_lens.analyses.attention_maps.collecting import PatternSums, Plan
from diffusion_lens.analyses.attention_maps.selecting import choose
from diffusion_lens.engine.registration import Registration

MODELS = {"unet": unet, "flux": flux}
WORDS = {"unet": (2, 5, 6), "flux": (1, 3, 4)}
STEPS = (5, 50)
SIDE = {"unet": 64, "flux": 32}


class Streamed:
    """The library's way: sums while the model runs, one resizing at the end.

    Args:
        name: Of the model.
        key: Which text tokens.
        daam: As `preset="daam"` does it; else as the default does.
    """

    def __init__(self, name: str, model: HookedDiffusion, *, key: Any, daam: bool) -> None:
        chosen = choose(model, leave_out=_middle(model) if daam else ())
        finest = min(chosen.levels.values())
        apart = [block for block, level in chosen.levels.items() if daam and level > finest]
        self.name, self.model = name, model
        self.sums = PatternSums(Plan(apart=frozenset(apart), over_steps="sum"))
        site = chosen.site(key=key, branch="cond")
        self.registration = Registration(site, self.sums, read_only=True)

    def run(self, call: Callable[[], Any]) -> Any:
        with (
            self.model.wiring.batch_holds(BRANCHES[self.name]),
            self.model.wiring.registered([self.registration]),
        ):
            return call()

    def result(self) -> Tensor:
        return self.sums.result()


class Eager:
    """Every pattern computed whole, resized at once, and kept."""

    def __init__(self, name: str, model: HookedDiffusion) -> None:
        self.name, self.model = name, model
        self.kept: list[Tensor] = []
        self.total: Tensor | None = None

    def __call__(self, pattern: Tensor, hook: Any) -> None:
        """Take a whole pattern of the conditional branch."""
        part = pattern[:, :, hook.queries["img"], hook.streams["txt"]]
        maps = part.mT.unflatten(-1, hook.grid)
        flat = maps.reshape(1, -1, *maps.shape[-2:])
        side = SIDE[self.name]
        big = F.interpolate(flat, size=(side, side), mode="bicubic").clamp_(min=0)
        total = big.reshape(*maps.shape[:-2], side, side).mean(1)
        self.total = total if self.total is None else self.total.add_(total)
        self.kept.append(part.clone())

    def run(self, call: Callable[[], Any]) -> Any:
        names = [str(site.name) for site in self.model.text_pattern_sites()]
        with self.model.hooks([(name, self) for name in names], branches=BRANCHES[self.name]):
            return call()

    def result(self) -> Tensor:
        assert self.total is not None
        return self.total


def ways(name: str, model: HookedDiffusion) -> dict[str, Callable[[], Any]]:
    """Fresh collectors by what they do."""
    words = ("txt", WORDS[name])
    return {
        "all tokens, default": lambda: Streamed(name, model, key="txt", daam=False),
        "all tokens, preset daam": lambda: Streamed(name, model, key="txt", daam=True),
        "three tokens, default": lambda: Streamed(name, model, key=words, daam=False),
        "eager way": lambda: Eager(name, model),
    }


def cpu_seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


@torch.no_grad()
def measure(name: str, rounds: int) -> None:
    """One evaluation between plain ones, and the result once."""
    denoiser, inputs = MODELS[name]()
    model = HookedDiffusion(denoiser)

    def call() -> Tensor:
        return denoiser(**inputs, return_dict=False)[0]

    def of(collector: Any) -> Callable[[], Any]:
        def run() -> Any:
            if isinstance(collector, Eager):
                collector.kept.clear()
            return collector.run(call)

        return run

    collectors = {what: make() for what, make in ways(name, model).items()}
    measured = {"plain again (control)": call} | {what: of(one) for what, one in collectors.items()}
    plain, ratios = bracket(call, measured, rounds=rounds)
    print(f"\n{name}: plain evaluation {plain * 1e3:.0f} ms CPU, {rounds} rounds")
    print(f"  {'':28s} {'one evaluation':32s} result once   5 steps  50 steps")
    for what, ratio in ratios.items():
        end = 0.0
        if what in collectors:
            end = statistics.median(cpu_seconds(collectors[what].result) for _ in range(5))
        whole = [f"{ratio.median + end / plain / count:.3f}" for count in STEPS]
        print(f"  {what:28s} {ratio!s:32s} {end * 1e3:7.1f} ms   {'     '.join(whole)}")


@torch.no_grad()
def whole(name: str, steps: int, rounds: int) -> None:
    """Whole runs between plain ones."""
    denoiser, inputs = MODELS[name]()
    model = HookedDiffusion(denoiser)

    def call() -> None:
        for step in range(steps):
            model.wiring.tracker.run.step = step
            denoiser(**inputs, return_dict=False)

    def of(make: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            collector = make()
            collector.run(call)
            return collector.result()

        return run

    runs = {"plain again (control)": call} | {k: of(make) for k, make in ways(name, model).items()}
    plain, ratios = bracket(call, runs, rounds=rounds)
    show(f"{name}: whole runs of {steps} steps, plain {plain:.2f} s CPU, {rounds} rounds", ratios)


def show(title: str, ratios: dict[str, Ratio]) -> None:
    print(f"\n{title}")
    for what, ratio in ratios.items():
        print(f"  {what:28s} {ratio}")


@torch.no_grad()
def held_after(name: str, way: str, steps: int) -> float:
    """Live tensor bytes beside the model's own after a run, in this process."""
    denoiser, inputs = MODELS[name]()
    model = HookedDiffusion(denoiser)
    denoiser(**inputs, return_dict=False)
    before = live_bytes()
    collector = ways(name, model)[way]()
    held = 0.0

    def call() -> None:
        nonlocal held
        for step in range(steps):
            model.wiring.tracker.run.step = step
            denoiser(**inputs, return_dict=False)
        held = live_bytes() - before

    collector.run(call)
    return held


def memory(name: str, steps: Iterable[int] = STEPS) -> None:
    """Live tensors of each way after some steps, each in a process of its own."""
    counts = list(steps)
    print(f"\n{name}: live tensors held after {' and '.join(map(str, counts))} steps, MB")
    for way in ("all tokens, default", "all tokens, preset daam", "eager way"):
        found = [in_fresh_process(__file__, "--model", name, "--held", way, n) for n in counts]
        print(f"  {way:28s} " + "   ".join(f"{one / 1e6:8.2f}" for one in found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--model", choices=tuple(MODELS))
    parser.add_argument("--whole", type=int, help="measure whole runs of this many steps")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--held", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    measure_steadily()
    if options.held:
        way, steps = options.held
        print(json.dumps(held_after(options.model, way, int(steps))))
        sys.exit()
    for chosen in [options.model] if options.model else list(MODELS):
        if options.whole:
            whole(chosen, options.whole, options.rounds)
            continue
        measure(chosen, options.rounds)
        if not options.no_memory:
            memory(chosen)
