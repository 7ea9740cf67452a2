"""What counting head relevance costs beside a denoiser evaluation, in units of plain diffusers.

    python benchmarks/head_relevance.py [--rounds 15] [--skip-memory]

A U-Net with 16 cross-attention layers, 34 concepts of 10 words. Also what is held after
5 and after 50 evaluations: counts, and nothing that grows.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys

import torch
from bracketing import bracket, measure_steadily
from held_memory import in_fresh_process, live_bytes
from models import unet

from diffusion_lens import HookedDiffusion, Site
from diffusion_lens.analyses.head_relevance import (
    ConceptWords,
    HeadRelevanceVotes,
    cross_attention_keys,
    text_heads,
)

BRANCHES = ("uncond", "cond")
CONCEPTS, WORDS, LONG = 34, 10, 57
"""Of the published table: 57 of the 340 words have two tokens or more."""


def collector(model: HookedDiffusion) -> HeadRelevanceVotes:
    """A collector whose words have random embeddings, as many rows as the published words."""
    generator = torch.Generator().manual_seed(0)
    rows, at = [], 1
    for concept in range(CONCEPTS):
        some = []
        for word in range(WORDS):
            count = 2 if concept * WORDS + word < LONG else 1
            some.append(tuple(range(at, at + count)))
            at += count
        rows.append(tuple(some))
    names = {f"concept {c}": tuple(f"word {c}.{w}" for w in range(WORDS)) for c in range(CONCEPTS)}
    embeddings = torch.randn(at, 768, generator=generator)
    words = ConceptWords(names, embeddings, tuple(rows))
    keys = cross_attention_keys(model, embeddings)
    return HeadRelevanceVotes(words, text_heads(model), keys, per_step=False)


def site() -> Site:
    """Where it reads."""
    return Site("blocks.*.cross_attn.img.hook_q", branch="cond")


@torch.no_grad()
def measure(rounds: int) -> None:
    """Print the ratio of CPU time."""
    denoiser, inputs = unet()
    model = HookedDiffusion(denoiser)
    votes = collector(model)

    def call() -> torch.Tensor:
        return denoiser(**inputs, return_dict=False)[0]

    expected = call()
    with model.hooks([(site(), votes)], branches=BRANCHES):
        assert torch.equal(call(), expected), "counting changed the output"

    def counted() -> torch.Tensor:
        with model.hooks([(site(), votes)], branches=BRANCHES):
            return call()

    size = sum(weight.numel() for weight in denoiser.parameters()) / 1e6
    plain, ratios = bracket(call, {"plain again": call, "votes": counted}, rounds=rounds)
    heads = len(votes.heads)
    print(
        f"unet: {size:.1f} M parameters, {heads} heads, plain {plain * 1e3:.0f} ms CPU, {rounds=}"
    )
    for what, ratio in ratios.items():
        print(f"  {what:12s} {ratio}")


@torch.no_grad()
def held_after(evaluations: int) -> dict[str, float]:
    """Live tensor bytes and peak memory after some evaluations, in this process."""
    denoiser, inputs = unet()
    model = HookedDiffusion(denoiser)
    votes = collector(model)
    with model.hooks([(site(), votes)], branches=BRANCHES):
        for step in range(evaluations):
            model.wiring.tracker.run.step = step
            denoiser(**inputs, return_dict=False)
        held = live_bytes()
    return {"live": held, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def memory() -> None:
    """Print what is held after 5 and after 50 evaluations, in fresh processes."""
    few, many = (in_fresh_process(__file__, "--held", evaluations) for evaluations in (5, 50))
    same = "equal" if few["live"] == many["live"] else "DIFFERENT"
    print(
        f"  5 against 50 evaluations: live tensors {same} ({few['live']}, {many['live']} bytes), "
        f"peak memory {(many['peak'] - few['peak']) / 1e6:+.1f} MB"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--held", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    measure_steadily()
    if options.held:
        print(json.dumps(held_after(options.held)))
        sys.exit()
    measure(options.rounds)
    if not options.skip_memory:
        memory()
