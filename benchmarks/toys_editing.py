"""Editing methods on the toy models, graded: `python benchmarks/toys_editing.py [--model NAME]`.

Every source has an edit of its colour, its shape and its texture. "Generate again" draws the target
with the source's noise and nothing else: a method must beat it.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from diffusion_lens import HookedDiffusion, toys
from diffusion_lens.analyses import (
    EditedImages,
    HeadRelevance,
    free_prompt_editing,
    head_relevance,
    masactrl,
    plug_and_play,
    prompt_to_prompt,
    sdedit,
    stable_flow,
)
from diffusion_lens.toys.benchmark.editing import (
    ATTRIBUTES,
    EditScore,
    EditTask,
    edit_tasks,
    editing_table,
    score_edits,
)
from diffusion_lens.toys.shapes.world import CONCEPTS

NAMES = {"colour": "Colour", "shape": "Shape", "texture": "Texture"}
CONCEPT_OF_TARGET = [NAMES[attribute] for attribute in ATTRIBUTES]
Method = Callable[..., EditedImages]


def with_vectors(relevance: HeadRelevance, vectors: torch.Tensor) -> HeadRelevance:
    """The same head relevance with other vectors, axes concept, head."""
    return dataclasses.replace(relevance, vectors=vectors)


def shuffled(relevance: HeadRelevance, seed: int) -> HeadRelevance:
    """The same numbers on other heads."""
    generator = torch.Generator().manual_seed(seed)
    heads = torch.randperm(relevance.vectors.shape[1], generator=generator)
    return with_vectors(relevance, relevance.vectors[:, heads])


def again(model: HookedDiffusion, source: str, targets: list[str], **settings: Any) -> Any:
    """The targets with the source's noise."""
    return prompt_to_prompt(model, source, targets, cross_replace=0, self_replace=0, **settings)


def methods(name: str, relevance: HeadRelevance) -> dict[str, Method]:
    """What is compared on a model."""
    every = partial(prompt_to_prompt, self_max_tokens=256)
    relevant = partial(every, relevance=relevance, concept=CONCEPT_OF_TARGET)
    even = partial(every, relevance=with_vectors(relevance, torch.ones_like(relevance.vectors)))
    found: dict[str, Method] = {
        "generate again, same seed": again,
        "SDEdit 0.5": partial(sdedit, strength=0.5),
        "SDEdit 0.7": partial(sdedit, strength=0.7),
        "P2P": every,
        "P2P, self-attention kept as long as in P2P-HRV": partial(every, self_replace=0.9),
        "P2P-HRV": partial(relevant, self_replace=0.9),
        "P2P-HRV, self-attention kept as long as in P2P": relevant,
        "P2P-HRV, every factor 1": partial(even, self_replace=0.9, concept=CONCEPT_OF_TARGET),
        "FPE": free_prompt_editing,
        "MasaCtrl": partial(masactrl, first_step=1),
    }
    if name == "shapes-unet":
        return found | {"PnP": plug_and_play}
    return found | {"Stable Flow, block 0": partial(stable_flow, blocks=[0])}


def main() -> None:
    """Print the table of one model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="shapes-unet", choices=toys.names())
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--captions", type=int, default=36, help="for the head relevance")
    parser.add_argument("--only", default="", help="methods whose name has this in it")
    parser.add_argument(
        "--controls", type=int, default=0, help="P2P-HRV with so many shuffled vectors, alone"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = HookedDiffusion.toy(arguments.model)
    settings = toys.call_defaults(model, steps=arguments.steps)
    tasks = edit_tasks(arguments.count)
    captions = [task.source for task in edit_tasks(arguments.captions, seed=1)]
    relevance = head_relevance(
        model,
        captions,
        concepts=dict(CONCEPTS),
        batch_size=12,
        per_step=False,
        show_progress=False,
        **settings,
    )

    def scored(method: Method) -> dict[str, EditScore]:
        def edit(task: EditTask) -> list[Any]:
            targets = [task.targets[attribute] for attribute in ATTRIBUTES]
            found = method(model, task.source, targets, seed=task.seed, **settings)
            return [found.source_image, *found.target_images]

        return score_edits(edit, tasks)

    if arguments.controls:
        both = {attribute: [] for attribute in ATTRIBUTES}
        for seed in range(arguments.controls):
            mixed = shuffled(relevance, seed)
            edited = partial(prompt_to_prompt, self_max_tokens=256, self_replace=0.9)
            for name, score in scored(
                partial(edited, relevance=mixed, concept=CONCEPT_OF_TARGET)
            ).items():
                both[name].append(score.both)
        for name, found in both.items():
            low, mean, high = (
                100 * one for one in (min(found), sum(found) / len(found), max(found))
            )
            sys.stdout.write(f"{name}: both in {mean:.0f} % ({low:.0f} to {high:.0f})\n")
        return
    scores = {}
    for name, method in methods(arguments.model, relevance).items():
        if arguments.only not in name:
            continue
        scores[name] = scored(method)
        sys.stderr.write(editing_table({name: scores[name]}) + "\n")
    sys.stdout.write(f"{arguments.model}, {arguments.steps} steps\n\n{editing_table(scores)}\n")


if __name__ == "__main__":
    main()
