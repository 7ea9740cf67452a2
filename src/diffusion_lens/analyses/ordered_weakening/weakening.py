"""Ordered weakening: does a concept vanish sooner when its relevant heads are weakened first?

Source: Park et al., Cross-Attention Head Position Patterns Can Align with Human Visual Concepts in
Text-to-Image Generative Models, arXiv 2412.02237, section 4 and appendix C.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from diffusion_lens import HookContext, HookedDiffusion, Site
from diffusion_lens.analyses.concept_steering import refuse_other_heads
from diffusion_lens.analyses.head_relevance.result import ORDERS, HeadRelevance
from diffusion_lens.analyses.ordered_weakening.curves import WeakeningCurves
from diffusion_lens.analyses.ordered_weakening.prompts import PUBLISHED_SEEDS
from diffusion_lens.errors import ResultError, RunError

Score = Callable[[list[Any], list[str]], Any]
"""From images and texts to a number for each image; nan where it does not apply."""


@dataclass(frozen=True)
class WeakenWords:
    """A hook that multiplies the pattern columns of each prompt's own words.

    Attributes:
        factor: The factor.
        columns: For each sample of the batch, columns as the hook sees them.
    """

    factor: float
    columns: tuple[tuple[int, ...], ...]

    def __call__(
        self, activation: Float[Tensor, "batch head query key"], hook: HookContext
    ) -> Float[Tensor, "batch head query key"]:
        """Scale the columns."""
        if len(activation) != len(self.columns):
            raise RunError(
                f"{hook.name}: a batch of {len(activation)} for {len(self.columns)} prompts; the "
                "hooks were made for other prompts, or with num_images_per_prompt above 1"
            )
        factors = activation.new_ones(len(self.columns), activation.shape[-1])
        for row, columns in enumerate(self.columns):
            factors[row, list(columns)] = self.factor
        return activation * factors[:, None, None]


def weaken_words(
    model: HookedDiffusion,
    prompts: str | Sequence[str],
    heads: Sequence[tuple[int, int]],
    *,
    factor: float = -2.0,
    words: Sequence[str] | None = None,
    steps: Any = None,
    branch: str = "cond",
) -> list[tuple[Site, WeakenWords]]:
    """Make the hooks that multiply the attention of some heads to the words of the prompt.

    Start, end and padding tokens are left alone, and rows are not renormalised. The published
    factor of −2 is no ablation: it turns round and doubles what a head reads from the words; 0 and
    0.5 are the milder controls.

    Args:
        model: The model.
        prompts: The prompts of the batch, in order.
        heads: (block, head) pairs, as `HeadRelevance.top` gives them.
        factor: The factor.
        words: Only these words or phrases, each in every prompt; None for every space-separated
            word, articles included, as published.
        steps: At which steps; None for all.
        branch: In which guidance branch.

    Returns:
        (Site, hook) pairs for `fwd_hooks`.

    Raises:
        WordError: If a word is not in a prompt.
        RunError: If a head does not read the text, or there are no heads or words.

    Source: arXiv 2412.02237, section 4.
    """
    each, heads = [prompts] if isinstance(prompts, str) else list(prompts), list(heads)
    if not heads or (words is not None and not words):
        what = "words=" if heads else "heads="
        raise RunError(
            f"weaken_words with an empty {what} weakens nothing; give (block, head) pairs as "
            "`relevance.top(...)` does, and words, or None for every word"
        )
    tokens = [
        sorted({at for word in words or prompt.split() for at in model.words(prompt, word)})
        for prompt in each
    ]
    union = sorted({at for some in tokens for at in some})
    hook = WeakenWords(factor, tuple(tuple(map(union.index, some)) for some in tokens))
    by_block: dict[int, list[int]] = {}
    for block, head in heads:
        by_block.setdefault(block, []).append(head)
    sites = {model.points[str(site.name)].block: site for site in model.text_pattern_sites()}
    missing = [block for block in by_block if block not in sites]
    if missing:
        raise RunError(
            f"block {missing[0]} has no head that reads text; blocks that do are {list(sites)}"
        )
    selection = {"key": ("txt", union), "steps": steps, "branch": branch}
    return [(sites[block].with_(heads=some, **selection), hook) for block, some in by_block.items()]


def ordered_weakening(
    model: HookedDiffusion,
    prompts: str | Sequence[str],
    relevance: HeadRelevance,
    *,
    concept: str,
    score: Score | Mapping[str, Score],
    factor: float = -2.0,
    order: str | Sequence[str] = ORDERS,
    counts: Sequence[int] | None = None,
    seeds: int | Sequence[int] = PUBLISHED_SEEDS,
    random_orders: int = 3,
    targets: Sequence[str] | None = None,
    words: Sequence[str] | None = None,
    steps: Any = None,
    batch_size: int = 1,
    keep_images: bool = False,
    show_progress: bool = True,
    **settings: Any,
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
        random_orders: How many random orders.
        targets: The text that each prompt's image is scored against, such as the bare word; None
            for the prompt.
        words: As for `weaken_words`.
        steps: At which steps heads are weakened; None for all.
        batch_size: Prompts drawn at once.
        keep_images: Keep every image.
        show_progress: Show a progress bar.
        **settings: Arguments of the pipeline's own call.

    Returns:
        Scores of every image, curves and the area between them.

    Raises:
        ConceptError: If the concept is unknown or the vectors are of other heads.
        ResultError: If an order is unknown, targets and prompts do not pair, or a score does not
            give one number for each image.
        RunError: If more heads are to be weakened than there are, nothing is to be drawn, or the
            pipeline gives latents instead of images.

    Source: arXiv 2412.02237, section 4 and appendix C.
    """
    refuse_other_heads(model, relevance)
    scores = dict(score) if isinstance(score, Mapping) else {"score": score}
    listed = [prompts] if isinstance(prompts, str) else list(prompts)
    texts = listed if targets is None else list(targets)
    if len(texts) != len(listed):
        raise ResultError(f"{len(texts)} targets for {len(listed)} prompts; give one for each")
    grid = _counts(counts, len(relevance.heads))
    orders = [order] if isinstance(order, str) else list(order)
    drawn = [seeds] if isinstance(seeds, int) else list(seeds)
    _refuse_nothing(
        prompts=len(listed),
        seeds=len(drawn),
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
    batches = list(_batches(listed, texts, drawn, batch_size))
    drawing = _Drawing(model, relevance, scores, factor, words, steps, settings)
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
        point = same.get(count) or drawing.point(sequences[name][draw][:count], batches)
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
        prompts=tuple(prompt for batch in batches for prompt in batch[0]),
        seeds=tuple(batch[2] for batch in batches for _ in batch[0]),
        images={name: [[at[1] for at in one] for one in some] for name, some in found.items()}
        if keep_images
        else None,
        made_by={
            "model": model.name,
            "relevance": relevance.made_by,
            "factor": factor,
            "words": None if words is None else list(words),
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
    words: Sequence[str] | None
    steps: Any
    settings: Mapping[str, Any]

    def point(
        self, heads: Sequence[int], batches: Sequence[tuple[list[str], list[str], int]]
    ) -> tuple[Float[Tensor, "score sample"], list[Any]]:
        pairs = [self.relevance.heads[index][:2] for index in heads]
        found, images = [], []
        for prompts, texts, seed in batches:
            hooks = self._hooks(prompts, pairs) if pairs else []
            out = self.model.run_with_hooks(prompts, seed=seed, fwd_hooks=hooks, **self.settings)
            if out.images is None:
                raise RunError("there are no images to score; leave out output_type='latent'")
            drawn = list(out.images)
            rows = [_scored(name, one, drawn, texts) for name, one in self.scores.items()]
            found.append(torch.stack(rows))
            images += drawn
        return torch.cat(found, 1), images

    def _hooks(
        self, prompts: list[str], pairs: list[tuple[int, int]]
    ) -> list[tuple[Site, WeakenWords]]:
        return weaken_words(
            self.model,
            prompts,
            pairs,
            factor=self.factor,
            words=self.words,
            steps=self.steps,
        )


def _scored(
    name: str, score: Score, images: list[Any], texts: list[str]
) -> Float[Tensor, " image"]:
    values = torch.as_tensor(score(images, texts)).float()
    if values.shape != (len(images),):
        raise ResultError(
            f"{name!r} gave values of shape {tuple(values.shape)} for {len(images)} images; a "
            "score takes lists of images and texts and gives one number for each image"
        )
    return values


def published_counts(heads: int) -> tuple[int, ...]:
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
        raise RunError(f"cannot weaken {wrong[0]} of {heads} heads; give counts from 0 to {heads}")
    return sorted({0, *counts, heads})


def _refuse_nothing(**sizes: int) -> None:
    empty = [name for name, size in sizes.items() if size < 1]
    if empty:
        raise RunError(f"{' and '.join(empty)}: nothing to draw; give at least one")


def _batches(
    prompts: Sequence[str], texts: Sequence[str], seeds: Sequence[int], size: int
) -> Iterator[tuple[list[str], list[str], int]]:
    for seed in seeds:
        for start in range(0, len(prompts), size):
            part = slice(start, start + size)
            yield list(prompts[part]), list(texts[part]), int(seed)
