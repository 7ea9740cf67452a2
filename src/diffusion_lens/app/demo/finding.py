"""Maps scored where the truth is known: renders of the shapes world with exact masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from diffusion_lens import HookedDiffusion
from diffusion_lens.analyses import attention_maps, concept_attention
from diffusion_lens.app.demo.setting import LOCALISING
from diffusion_lens.toys.benchmark.baselines import centred_disc, random_map
from diffusion_lens.toys.benchmark.segmentation import (
    Task,
    score_segmentation,
    segmentation_tasks,
)
from diffusion_lens.toys.tokenizers import MAX_LENGTH

NOISE_LEVEL = 0.5
AS_TRAINED: dict[str, Any] = {"max_sequence_length": MAX_LENGTH}
"""For the toy MM-DiT; a Flux pipeline pads captions to 512 tokens."""

Method = Callable[[Task], np.ndarray]


def tasks(count: int) -> tuple[Task, ...]:
    """Held-out scenes of two objects; what is asked for are the objects and the background."""
    kinds = ("object", "background")
    return tuple(
        replace(task, queries=tuple(query for query in task.queries if query.kind in kinds))
        for task in segmentation_tasks(count, noise_level=NOISE_LEVEL)
    )


def by_attention(model: HookedDiffusion) -> Method:
    """Attention maps: the mean over the tokens of a phrase."""
    joint = model.spec.concepts is not None
    start = 0 if joint else 1  # CLIP's start token
    settings = AS_TRAINED if joint else {}

    def method(task: Task) -> np.ndarray:
        maps = attention_maps(
            model,
            task.caption,
            image=Image.fromarray(task.image),
            noise_level=task.noise_level,
            seed=task.seed,
            **settings,
        ).maps[0]
        rows = [[start + word for word in query.words] for query in task.queries]
        return np.stack([maps[row].mean(0).numpy() for row in rows])

    return method


def by_concepts(model: HookedDiffusion) -> Method:
    """ConceptAttention: the phrases are the concepts, and compete."""

    def method(task: Task) -> np.ndarray:
        words = task.caption.split()
        phrases = [" ".join(words[at] for at in query.words) for query in task.queries]
        return (
            concept_attention(
                model,
                task.caption,
                concepts=phrases,
                image=Image.fromarray(task.image),
                noise_level=task.noise_level,
                seed=task.seed,
                blocks=LOCALISING,
                **AS_TRAINED,
            )
            .maps[0]
            .numpy()
        )

    return method


def objects_found(
    methods: dict[str, Method], scenes: Sequence[Task], *, show_progress: bool
) -> list[dict[str, Any]]:
    """A row for each method, and for two maps that know nothing."""
    everything = {**methods, "centred disc": centred_disc, "random map": random_map}
    total = len(everything) * len(scenes)
    rows = []
    with tqdm(total=total, unit="map", leave=False, disable=not show_progress) as bar:
        for name, method in everything.items():
            score = score_segmentation(_counted(method, bar), scenes)["object"]
            rows.append(
                {
                    "map": name,
                    "average precision": score.average_precision,
                    "mean IoU": score.miou,
                    "pixel accuracy": score.accuracy,
                }
            )
    return rows


def _counted(method: Method, bar: tqdm) -> Method:
    def counted(task: Task) -> np.ndarray:
        bar.update()
        return method(task)

    return counted
