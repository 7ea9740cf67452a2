"""ConceptAttention as a saliency method of the toy models' segmentation benchmark.

The concepts of a task are what its caption says: for objects the whole phrases, for colours, shapes
and textures their words, each time against the background's words. A word that is said of both
objects gets one map for both, which the masks count as half wrong; methods that read positions of
the prompt can tell them apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from diffusion_lens import HookedDiffusion
from diffusion_lens.analyses.concept_attention.concept_attention import concept_attention
from diffusion_lens.analyses.concept_attention.result import ConceptMaps
from diffusion_lens.toys.benchmark.baselines import centred_disc, exact_on_grid, random_map
from diffusion_lens.toys.benchmark.patterns import raw_pattern
from diffusion_lens.toys.benchmark.segmentation import (
    SaliencyMethod,
    SegmentationScore,
    Task,
    score_segmentation,
    segmentation_tasks,
)
from diffusion_lens.toys.tokenizers import MAX_LENGTH

Scores = Mapping[str, SegmentationScore]
"""Kind of query to score."""


def saliency_method(model: HookedDiffusion, **how: Any) -> SaliencyMethod:
    """ConceptAttention in the form in which the benchmark takes methods.

    Args:
        model: A toy model with concept streams.
        **how: Arguments of `concept_attention`, such as `preset=`, `blocks=` or `space=`.

    Returns:
        A method: the render is noised to the task's level and denoised once with its caption.
    """
    # Flux pads to 512 tokens, the toys were trained with fewer, and attention sees the padding.
    how = {"max_sequence_length": MAX_LENGTH, **how}

    def method(task: Task) -> Float[np.ndarray, "query rows columns"]:
        said = task.caption.split()
        phrases = [" ".join(said[word] for word in query.words) for query in task.queries]
        groups = ["object" if q.kind == "background" else q.kind for q in task.queries]
        background = phrases[-1]
        maps: dict[str, ConceptMaps] = {}
        for group in dict.fromkeys(groups):
            own = [phrase for phrase, of in zip(phrases, groups, strict=True) if of == group]
            maps[group] = concept_attention(
                model,
                task.caption,
                concepts=list(dict.fromkeys([*own, background])),
                image=Image.fromarray(task.image),
                noise_level=task.noise_level,
                seed=task.seed,
                **how,
            )
        found = [maps[of].of(phrase)[0] for phrase, of in zip(phrases, groups, strict=True)]
        return np.stack([one.double().numpy() for one in found])

    return method


def compare(model: HookedDiffusion, *, noise_level: float, count: int) -> dict[str, Scores]:
    """ConceptAttention beside what knows nothing, the raw pattern, and the upper bound.

    Args:
        model: A toy model with concept streams.
        noise_level: How far to noise the renders.
        count: Scenes of two objects.

    Returns:
        Method to kind of query to score; `segmentation_table` prints it.
    """
    assert model.pipe is not None
    methods: dict[str, SaliencyMethod] = {
        "random map": random_map,
        "centred disc": centred_disc,
        "raw text-to-image pattern": raw_pattern(model.pipe),
        "ConceptAttention": saliency_method(model),
        "exact mask on 16 x 16 cells": exact_on_grid(16),
    }
    tasks = segmentation_tasks(count, noise_level=noise_level)
    return {name: score_segmentation(method, tasks) for name, method in methods.items()}
