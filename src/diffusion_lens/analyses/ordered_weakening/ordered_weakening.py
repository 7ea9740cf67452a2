"""Ordered weakening: does a concept vanish sooner when its relevant heads are weakened first?

Source: Park et al., Cross-Attention Head Position Patterns Can Align with Human Visual Concepts in
Text-to-Image Generative Models, arXiv 2412.02237, section 4 and appendix C.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from diffusion_lens import HookedDiffusion, Run, Site
from diffusion_lens.analyses.concept_steering import refuse_other_heads
from diffusion_lens.analyses.head_relevance.result import ORDERS, HeadRelevance
from diffusion_lens.analyses.ordered_weakening.prompts import PUBLISHED_SEEDS
from diffusion_lens.analyses.ordered_weakening.result import WeakeningCurves
from diffusion_lens.analyses.ordered_weakening.words import WeakenWords, weaken_words
from diffusion_lens.border import Number, PipelineSetting, Size, public
from diffusion_lens.errors import ResultError, RunError
from diffusion_lens.long_runs.batching import batches
from diffusion_lens.long_runs.seeds import listed_seeds, refuse_one_seed
from diffusion_lens.showing.one_line import counted

Score = Callable[[list[Any], list[str]], Any]
"""From images and texts to a number for each image; nan where it does not apply."""


@public
def ordered_weakening(
    model: HookedDiffusion,
    prompts: str | Sequence[str],
    relevance: HeadRelevance,
    *,
    concept: str,
    score: Score | Mapping[str, Score],
    factor: Number = -2.0,
    order: str | Sequence[str] = ORDERS,
    counts: Sequence[int] | None = None,
    seeds: int | Sequence[int] = PUBLISHED_SEEDS,
    random_orders: int = 3,
    targets: Sequence[str] | None = None,
    words: str | Sequence[str] | None = None,
    steps: Any = None,
    batch_size: int = 1,
    keep_images: bool = False,
    show_progress: bool = True,
    **settings: PipelineSetting,
) -> WeakeningCurves:
    """Weaken more and more heads in an order, and score what is drawn at each point.

    Where relevance is right, the concept's curve falls sooner with the most relevant heads first
    than with the least relevant ones first; random orders lie between. The least relevant heads are
    relevant to other concepts: their removal damages images, too, in other ways.

    Args:
        model: The model from which the relevance was counted.
        prompts: Prompts that name something of the concept; see `weakening_prompts`.
        relevance: Head relevance vectors.
        concept: Whose vector orders the heads.
        score: A number for each image, from images and targets; or several by name.
        factor: On the attention of weakened heads to the words.
        order: One or several of `"most"`, `"least"`, `"random"`.
        counts: How many heads are weakened at each point; 0 and all of them are added. None for the
            published grid.
        seeds: Every prompt is drawn with every seed; all prompts share its noise, as published.
            How many, with the seeds from 0 on; or the seeds themselves.
        random_orders: How many random orders.
        targets: The text that each prompt's image is scored against, such as the bare word; None
            for the prompt.
        words: As for `weaken_words`.
        steps: At which steps heads are weakened; None for all.
        batch_size: Prompts drawn at once.
        keep_images: Keep every image.
        show_progress: Show a progress bar.
        **settings: Arguments of the pipeline's own call. Negative prompts, embeddings and images
            may be one for all prompts or one for each; latents are one for each.

    Returns:
        Scores of every image, curves and the area between them.

    Raises:
        ConceptError: If the concept is unknown or the vectors are of other heads.
        ResultError: If an order is unknown, targets and prompts do not pair, or a score does not
            give one number for each image.
        RunError: If more heads are to be weakened than there are, nothing is to be drawn, a setting
            does not pair with the prompts, or the pipeline gives latents instead of images.

    Source: arXiv 2412.02237, section 4 and appendix C.
    """
    refuse_other_heads(model, relevance)
    scores = dict(score) if isinstance(score, Mapping) else {"score": score}
    listed = [prompts] if isinstance(prompts, str) else list(prompts)
    texts = listed if targets is None else list(targets)
    if len(texts) != len(listed):
        raise ResultError(
            f"{counted(len(texts), 'target')} for {counted(len(listed), 'prompt')}; give one for "
            "each"
        )
    grid = _counts(counts, len(relevance.heads))
    orders = [order] if isinstance(order, str) else list(order)
    refuse_one_seed(settings, error=RunError)
    drawn = listed_seeds(seeds, error=RunError)
    _refuse_nothing(
        prompts=len(listed),
        order=len(orders),
        score=len(scores),
        batch_size=batch_size,
        **({"random_orders": random_orders} if "random" in orders else {}),
    )
    sequences = {
        name: [
            relevance.order(concept, name, seed=draw)
            for draw in range(random_orders if name == "random" else 1)
        ]
        for name in orders
    }
    samples = _samples(Run(listed, **settings), texts, drawn, batch_size)
    drawing = _Drawing(model, relevance, scores, factor, words, steps)
    cells = [
        (name, draw, count)
        for name, some in sequences.items()
        for draw in range(len(some))
        for count in grid
    ]
    same: dict[int, Any] = {}  # no head or all of them: the same images in every order
    found: dict[str, list[list[Any]]] = {
        name: [[] for _ in some] for name, some in sequences.items()
    }
    for name, draw, count in tqdm(cells, disable=not show_progress, unit="point"):
        point = same.get(count) or drawing.point(sequences[name][draw][:count], samples)
        if count in (grid[0], grid[-1]):
            same[count] = point
        found[name][draw].append(point)
    return WeakeningCurves(
        concept=concept,
        counts=tuple(grid),
        scores={
            name: torch.stack([torch.stack([at[0] for at in one], 1) for one in some], 1)
            for name, some in found.items()
        },
        score_names=tuple(scores),
        prompts=tuple(prompt for _ in drawn for prompt in listed),
        seeds=tuple(int(seed) for seed in drawn for _ in listed),
        images={name: [[at[1] for at in one] for one in some] for name, some in found.items()}
        if keep_images
        else None,
        made_by={
            "model": model.name,
            "relevance": relevance.made_by,
            "factor": factor,
            "words": [words] if isinstance(words, str) else words and list(words),
            "targets": None if targets is None else texts,
            "steps": repr(steps),
            "settings": repr(settings),
        },
    )


@dataclass(frozen=True)
class _Drawing:
    """Draws and scores the images of one point of a curve."""

    model: HookedDiffusion
    relevance: HeadRelevance
    scores: Mapping[str, Score]
    factor: float
    words: str | Sequence[str] | None
    steps: Any

    def point(
        self, heads: Sequence[int], samples: Sequence[tuple[Run, list[str]]]
    ) -> tuple[Float[Tensor, "score sample"], list[Any]]:
        pairs = [self.relevance.heads[index][:2] for index in heads]
        found, images = [], []
        for run, texts in samples:
            out = self.model.run_with_hooks(run, fwd_hooks=self._hooks(run, pairs))
            if out.images is None:
                raise RunError("there are no images to score; leave out output_type='latent'")
            drawn = list(out.images)
            rows = [_scored(name, one, drawn, texts) for name, one in self.scores.items()]
            found.append(torch.stack(rows))
            images += drawn
        return torch.cat(found, 1), images

    def _hooks(self, run: Run, pairs: Sequence[tuple[int, int]]) -> list[tuple[Site, WeakenWords]]:
        if not pairs:
            return []
        more = {"factor": self.factor, "words": self.words, "steps": self.steps}
        length = run.text_length
        return weaken_words(self.model, run.prompts, pairs, max_sequence_length=length, **more)


def _scored(
    name: str, score: Score, images: list[Any], texts: list[str]
) -> Float[Tensor, " image"]:
    values = torch.as_tensor(score(images, texts)).float()
    if values.shape != (len(images),):
        raise ResultError(
            f"{name!r} gave values of shape {tuple(values.shape)} for "
            f"{counted(len(images), 'image')}; a "
            "score takes lists of images and texts and gives one number for each image"
        )
    return values


@public
def published_counts(heads: Size) -> tuple[int, ...]:
    """The published numbers of weakened heads: 0, 1, 11, … for SD 1.4; 0, 11, 111, … for SDXL.

    Args:
        heads: How many heads there are.
    """
    start, step = (1, 10) if heads <= 200 else (11, 100)
    return (0, *range(start, heads, step), heads)


def _counts(counts: Sequence[int] | None, heads: int) -> list[int]:
    if counts is None:
        return list(published_counts(heads))
    wrong = [count for count in counts if not 0 <= count <= heads]
    if wrong:
        raise RunError(
            f"cannot weaken {wrong[0]} of {counted(heads, 'head')}; give counts from 0 to {heads}"
        )
    return sorted({0, *counts, heads})


def _refuse_nothing(**sizes: int) -> None:
    empty = [name for name, size in sizes.items() if size < 1]
    if empty:
        raise RunError(f"{' and '.join(empty)}: nothing to draw; give at least one")


def _samples(
    run: Run, texts: Sequence[str], seeds: Sequence[int], size: int
) -> list[tuple[Run, list[str]]]:
    """What is drawn at every point, batch after batch, and what it is scored against."""
    if run.images_per_prompt > 1:
        raise RunError(
            f"{counted(run.images_per_prompt, 'image')} of each prompt were asked for; here a "
            "prompt gets one for each of seeds=, so that all points have the same noise"
        )
    return [
        (part.with_(seed=int(seed)), [texts[at] for at in numbers])
        for seed in seeds
        for numbers, part in batches(run, size)
    ]
