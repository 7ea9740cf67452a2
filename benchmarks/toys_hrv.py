"""Head relevance on the shipped toy UNet, where a program grades what is drawn.

    python benchmarks/toys_hrv.py [--fast] [--captions 40] [--out benchmarks/results/toys_hrv]

1. Head relevance vectors of six concepts, from 108 captions.
2. Weakening curves: the share of images in which the attribute is still right, as heads are
   weakened in the order of the concept's vector, in the reverse order, and in random orders.
3. The word "orange" (a colour or a fruit): in which sense it is drawn, plain, with concept
   adjusting towards either sense, and with random vectors of the same norm (one for 12 seeds).
4. From which word and in which layer the model reads colour.

Writes `toys_hrv.json` and `toys_hrv.csv` with the checksums of the model's weights, and
`SHA256SUMS`. `--fast` is the same on a few images, for tests.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion_lens import HookedDiffusion
from diffusion_lens.analyses.concept_steering import (
    random_vector_like,
    rescale_word,
    rescaling_vector,
)
from diffusion_lens.analyses.head_relevance import HeadRelevance, head_relevance
from diffusion_lens.analyses.ordered_weakening import (
    WeakeningCurves,
    ordered_weakening,
    weaken_words,
)
from diffusion_lens.toys.benchmark.polysemy import drawn_sense, misreading
from diffusion_lens.toys.benchmark.weakening import attribute_score, captions_naming
from diffusion_lens.toys.loading import checksums, folder
from diffusion_lens.toys.shapes.captions import read_caption
from diffusion_lens.toys.shapes.evaluation import test_captions
from diffusion_lens.toys.shapes.world import CONCEPTS

MODEL = "shapes-unet"
ATTRIBUTES = ("colour", "shape", "texture", "size", "background")
COLOUR_LAYER = "up, layer: 4"
"""Where `make toys-patching` finds colour (block 8)."""
WORD = "orange"
SENSES = {"colour": ("Colour", "Shape"), "fruit": ("Shape", "Colour")}
"""For each sense of the word, the concept to strengthen and the one to weaken."""


@dataclass(frozen=True)
class Plan:
    """How much is drawn."""

    vectors: int = 108
    captions: int = 40
    pairs: int = 20
    counts: tuple[int, ...] = (4, 12)
    random_orders: int = 2
    seeds: int = 60
    steps: int = 8
    factors: tuple[float, ...] = (-2.0,)


FAST = Plan(6, 2, 1, (8,), 1, 2, 2)


def settings(plan: Plan) -> dict[str, Any]:
    """Arguments of the pipeline's call."""
    return {"num_inference_steps": plan.steps, "guidance_scale": 2.0}


def vectors(model: HookedDiffusion, plan: Plan) -> HeadRelevance:
    """Vectors of the six concepts; the word with two senses stands for none of them."""
    concepts = {name: [word for word in words if word != WORD] for name, words in CONCEPTS.items()}
    listed = [one.caption for one in test_captions()]
    spread = listed[:: len(listed) // plan.vectors][: plan.vectors]
    return head_relevance(
        model, spread, concepts=concepts, batch_size=12, show_progress=False, **settings(plan)
    )


def weakening(
    model: HookedDiffusion, relevance: HeadRelevance, plan: Plan, factor: float
) -> dict[str, WeakeningCurves]:
    """Curves of every concept; the random orders are drawn once for all of them."""
    single = captions_naming(*ATTRIBUTES)[: plan.captions]
    pairs = captions_naming("relation")[: plan.pairs]

    def run(captions: Sequence[str], parts: Sequence[str], concept: str, order: Any) -> Any:
        return ordered_weakening(
            model,
            captions,
            relevance,
            concept=concept,
            score={part: attribute_score(part) for part in parts},
            factor=factor,
            order=order,
            counts=plan.counts,
            seeds=(0,),
            random_orders=plan.random_orders,
            batch_size=12,
            show_progress=False,
            **settings(plan),
        )

    found = {}
    both = ("most", "least")
    chance = run(single, ATTRIBUTES, "Colour", "random")
    for concept in relevance.concepts:
        if concept == "Relation":
            found[concept] = run(pairs, ("relation", "colour", "shape"), concept, (*both, "random"))
        else:
            curves = run(single, ATTRIBUTES, concept, both)
            found[concept] = replace(curves, scores={**curves.scores, **chance.scores})
        print(f"  {concept}: {found[concept].area(concept.lower()):+.3f}", flush=True)
    return found


def polysemy(model: HookedDiffusion, relevance: HeadRelevance, plan: Plan) -> dict[str, Any]:
    """In which sense the bare word is drawn, over seeds."""

    def draw(vector_of: Callable[[int], torch.Tensor] | None = None) -> list[str | None]:
        seen: list[str | None] = []
        for batch, start in enumerate(range(0, plan.seeds, 12)):
            seeds = list(range(start, min(start + 12, plan.seeds)))
            vector = None if vector_of is None else vector_of(batch)
            hooks = [] if vector is None else rescale_word(model, WORD, relevance.factors(vector))
            out = model.run_with_hooks(
                [WORD] * len(seeds), seed=seeds, fwd_hooks=hooks, **settings(plan)
            )
            seen += [drawn_sense(np.asarray(image.convert("RGB"))) for image in out.images]
        return seen

    found: dict[str, Any] = {}
    plain, unread = draw(), draw(lambda _: torch.zeros(len(relevance.heads)))
    for sense, (desired, undesired) in SENSES.items():
        vector = rescaling_vector(relevance.vector(desired), relevance.vector(undesired))
        ways = {
            "plain": plain,
            "adjusted": draw(lambda _, vector=vector: vector),
            "random, same norm": draw(
                lambda batch, vector=vector: random_vector_like(vector, seed=batch)
            ),
            "no attention to the word": unread,
        }
        found[sense] = {
            "desired": desired,
            "undesired": undesired,
            "norm": float(vector.norm()),
            **{name: misreading(seen, sense) for name, seen in ways.items()},
        }
        print(f"  as {sense}: {found[sense]}", flush=True)
    return found


def where_colour_is_read(
    model: HookedDiffusion, relevance: HeadRelevance, plan: Plan
) -> dict[str, float]:
    """Share of images with the right colour: attention to one word gone, one layer weakened."""
    captions = captions_naming(*ATTRIBUTES)[: plan.captions]
    things = [read_caption(caption).things[0] for caption in captions]
    every = [head[:2] for head in relevance.heads]
    layer = [head[:2] for head in relevance.heads if head.name.startswith(COLOUR_LAYER)]
    others = [head for head in every if head not in layer]

    def share(heads: Any, factor: float, words: Sequence[Any]) -> float:
        images = []
        for caption, word in zip(captions, words, strict=True):
            chosen = None if word is None else [word]
            hooks = weaken_words(model, caption, heads, factor=factor, words=chosen)
            out = model.run_with_hooks(caption, seed=0, fwd_hooks=hooks, **settings(plan))
            images += out.images
        return round(float(np.mean(attribute_score("colour")(images, captions))), 4)

    whole = [None] * len(captions)
    return {
        "attention to the colour word times 0 in all heads": share(
            every, 0.0, [thing.colour for thing in things]
        ),
        "attention to the shape word times 0 in all heads": share(
            every, 0.0, [thing.shape for thing in things]
        ),
        f"attention to all words times -2 in the heads of {COLOUR_LAYER}": share(
            layer, -2.0, whole
        ),
        "attention to all words times -2 in the heads of all other layers": share(
            others, -2.0, whole
        ),
    }


def as_table(concept: str, curves: WeakeningCurves, factor: float) -> list[dict[str, Any]]:
    """The curves as rows."""
    return [
        {
            "factor": factor,
            "concept": concept,
            "order": order,
            "score": part,
            "weakened": count,
            "share": round(share, 4),
        }
        for order in curves.scores
        for part in curves.score_names
        for count, share in zip(curves.counts, curves.curve(order, part).tolist(), strict=True)
    ]


def summary(concept: str, curves: WeakeningCurves) -> dict[str, Any]:
    """The area between the curves of the concept's own attribute, and of the others."""
    part = concept.lower()

    def area(above: str, below: str) -> list[float]:
        low, high = curves.area_interval(part, above=above, below=below)
        return [
            round(value, 4) for value in (curves.area(part, above=above, below=below), low, high)
        ]

    curve = {
        order: [round(v, 3) for v in curves.curve(order, part).tolist()] for order in curves.scores
    }
    return {
        "captions": len(set(curves.prompts)),
        "weakened": list(curves.counts),
        "curves": curve,
        "area, least minus most": area("least", "most"),
        "area, random minus most": area("random", "most"),
        "area, least minus random": area("least", "random"),
        "area of other attributes, least minus most": {
            name: round(curves.area(name), 4) for name in curves.score_names if name != part
        },
    }


def experiment(plan: Plan, out: Path) -> dict[str, Any]:
    """Run everything and write it."""
    start = time.process_time()
    model = HookedDiffusion.toy(MODEL)
    relevance = vectors(model, plan)
    halves = relevance.split_half(draws=50).nanmean(0)
    facts: dict[str, Any] = {
        "model": MODEL,
        "weights_sha256": checksums(folder(MODEL)),
        "plan": vars(plan),
        "vectors": {
            name: {
                "vote share": round(relevance.vote_share[name], 4),
                "split-half cosine": round(float(halves[at]), 4),
                "top heads": [relevance.heads[i].name for i in relevance.order(name)[:5]],
                "vector": [round(value, 4) for value in relevance.vector(name).tolist()],
            }
            for at, name in enumerate(relevance.concepts)
        },
        "heads": [head.name for head in relevance.heads],
    }
    print(f"vectors: {facts['vectors'].keys()} {time.process_time() - start:.0f} s", flush=True)
    facts["polysemy"] = polysemy(model, relevance, plan)
    facts["where colour is read"] = where_colour_is_read(model, relevance, plan)
    facts["weakening"], rows = {}, []
    for factor in plan.factors:
        curves = weakening(model, relevance, plan, factor)
        facts["weakening"][str(factor)] = {name: summary(name, one) for name, one in curves.items()}
        rows += [row for name, one in curves.items() for row in as_table(name, one, factor)]
    facts["cpu_seconds"] = round(time.process_time() - start)
    out.mkdir(parents=True, exist_ok=True)
    (out / "toys_hrv.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    with (out / "toys_hrv.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    digests = {
        name: hashlib.sha256((out / name).read_bytes()).hexdigest()
        for name in ("toys_hrv.csv", "toys_hrv.json")
    }
    lines = [f"{digest}  {name}\n" for name, digest in digests.items()]
    (out / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")
    return facts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="a few images, for tests")
    default = Path(__file__).parent / "results" / "toys_hrv"
    parser.add_argument("--out", type=Path, default=default)
    parser.add_argument("--captions", type=int, default=Plan.captions, help="of weakening curves")
    options = parser.parse_args()
    torch.set_num_threads(1)
    plan = FAST if options.fast else Plan(captions=options.captions, pairs=options.captions // 2)
    experiment(plan, options.out)
