"""What hooks cost: CPU time of one denoiser evaluation with hooks, in units of plain diffusers.

    python benchmarks/overhead.py [--rounds 15] [--model unet|flux]

Also what a streamed reading holds: live tensor bytes and peak memory at 10 and at 50 evaluations.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from bracketing import bracket, measure_steadily
from held_memory import in_fresh_process, live_bytes
from models import flux, unet

from diffusion_lens import ActivationCache, HookedDiffusion, Site
from diffusion_lens.activation_cache.recorder import CacheRecorder
from diffusion_lens.engine.registration import Registration
from diffusion_lens.reducers import RunningMean

WORDS = {"unet": (2, 5, 6, 9, 11, 12), "flux": (1, 3, 4, 7, 9, 12, 15, 20)}
ONE_HEAD = {"unet": "blocks.15.attn.hook_pattern", "flux": "blocks.1.attn.hook_pattern"}
BRANCHES = {"unet": ("uncond", "cond"), "flux": ("cond",)}


def conditions(name: str, model: HookedDiffusion, call: Callable[[], Any]) -> dict[str, Callable]:
    """The measured runs by what they do."""
    text = model.text_pattern_sites()
    words = [site.with_(key=("txt", WORDS[name])) for site in text]
    mean_over_heads = partial(RunningMean, over="head")

    def cached(names: Any) -> Callable[[], Any]:
        """A step of a run that keeps everything: its memory is fresh."""

        def run() -> Any:
            with model.caching(names, branches=BRANCHES[name]) as cache:
                call()
            return cache

        return run

    def streamed(sites: Any, reduce: Callable[[], Any]) -> Callable[[], Any]:
        """A step of a run that streams: its accumulators are there already."""
        recorder = CacheRecorder(ActivationCache(), reduce=reduce)
        sites = [sites] if isinstance(sites, Site) else sites
        registrations = [
            Registration(site.with_(branch="cond"), recorder, read_only=True) for site in sites
        ]

        def run() -> Any:
            with model.wiring.batch_holds(BRANCHES[name]), model.wiring.registered(registrations):
                return call()

        return run

    return {
        "plain again (control)": call,
        "(a) wrapped, nothing hooked": cached_nothing(model, call),
        "(b) all z cached": cached("blocks.**.hook_z"),
        "(c) one head's full pattern, kept": cached(Site(ONE_HEAD[name], heads=0)),
        "(c') one head's full pattern, streamed": streamed(
            Site(ONE_HEAD[name], heads=0), RunningMean
        ),
        "(d) all text patterns, mean over steps": streamed(text, RunningMean),
        "(d') all text patterns, mean over heads, too": streamed(text, mean_over_heads),
        "(d'') words only, mean over steps": streamed(words, RunningMean),
        "(e) every pattern, eager and kept": eager_and_kept(model, call),
    }


def cached_nothing(model: HookedDiffusion, call: Callable[[], Any]) -> Callable[[], Any]:
    """A run inside an empty hook context."""

    def run() -> Any:
        with model.hooks():
            return call()

    return run


def eager_and_kept(model: HookedDiffusion, call: Callable[[], Any]) -> Callable[[], Any]:
    """What tools that replace attention processors do: whole patterns, both branches, all kept."""
    sites = model.text_pattern_sites()
    names = [str(site.name) for site in sites]

    def run() -> Any:
        kept = []
        with model.hooks([(name, lambda pattern, _: kept.append(pattern)) for name in names]):
            call()
        return kept

    return run


def held_after(name: str, evaluations: int) -> dict[str, float]:
    """Live tensor bytes and peak memory of a streamed reading, in this process."""
    denoiser, inputs = {"unet": unet, "flux": flux}[name]()
    model = HookedDiffusion(denoiser)
    with torch.no_grad():
        sites = model.text_pattern_sites()
        with model.caching(sites, reduce=RunningMean, branches=BRANCHES[name]):
            for step in range(evaluations):
                model.wiring.tracker.run.step = step
                denoiser(**inputs, return_dict=False)
            held = live_bytes()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"live": held, "peak": peak}


def memory(name: str) -> str:
    """What a streamed reading holds after 10 and after 50 evaluations, in fresh processes."""
    few, many = (
        in_fresh_process(__file__, "--model", name, "--held", evaluations)
        for evaluations in (10, 50)
    )
    same = "equal" if few["live"] == many["live"] else "DIFFERENT"
    peak = (many["peak"] - few["peak"]) / 1e6
    return (
        f"streamed text patterns, 10 against 50 evaluations: live tensors {same} "
        f"({few['live'] / 1e6:.1f} and {many['live'] / 1e6:.1f} MB), peak memory {peak:+.1f} MB"
    )


@torch.no_grad()
def measure(name: str, rounds: int) -> None:
    """Measure one model and print a table."""
    denoiser, inputs = {"unet": unet, "flux": flux}[name]()
    model = HookedDiffusion(denoiser)

    def call() -> torch.Tensor:
        return denoiser(**inputs, return_dict=False)[0]

    expected = call()
    runs = conditions(name, model, call)
    with model.hooks([("**", lambda *_: None)]):
        assert torch.equal(call(), expected), "hooks that only read changed the output"
    size = sum(weight.numel() for weight in denoiser.parameters()) / 1e6
    plain, ratios = bracket(call, runs, rounds=rounds)
    print(f"\n{name}: {size:.1f} M parameters, plain {plain * 1e3:.0f} ms CPU, {rounds} rounds")
    for what, ratio in ratios.items():
        print(f"  {what:52s} {ratio}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--model", choices=("unet", "flux"))
    parser.add_argument("--held", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    measure_steadily()
    if options.held:
        print(json.dumps(held_after(options.model, options.held)))
        sys.exit()
    for chosen in [options.model] if options.model else ["unet", "flux"]:
        measure(chosen, options.rounds)
        print("  " + memory(chosen))
