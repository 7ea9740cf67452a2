"""Head relevance vectors: which attention heads matter for which visual concept.

Source: Park et al., Cross-Attention Head Position Patterns Can Align with Human Visual Concepts in
Text-to-Image Generative Models, arXiv 2412.02237, section 3, and its code (SNU-DRL/HRV).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from diffusion_lens import HookedDiffusion, Run, Site
from diffusion_lens.analyses.head_relevance.checkpoint import Checkpoint
from diffusion_lens.analyses.head_relevance.concepts import PUBLISHED_CONCEPTS
from diffusion_lens.analyses.head_relevance.result import Head, HeadRelevance, vectors_of
from diffusion_lens.analyses.head_relevance.votes import VOTES, HeadRelevanceVotes
from diffusion_lens.analyses.head_relevance.words import (
    CROSS_QUERIES,
    ConceptWords,
    cross_attention_keys,
)
from diffusion_lens.authoring import DEFAULT_SEED, ENCODING, carriers
from diffusion_lens.border import Count, PipelineSetting, public
from diffusion_lens.errors import ConceptError, UnsupportedModelError, refuse_unknown
from diffusion_lens.long_runs.batching import batches
from diffusion_lens.long_runs.fingerprint import fingerprint

PARTS = 50
"""In how many disjoint parts of the prompts votes are counted apart, for intervals over prompts."""


COUNTED = (
    "words",
    "include_start_token",
    "vote",
    "per_step",
    "words_seed",
    "batch_size",
)
"""How votes are counted, as `made_by` says it; the rest is of the model and the run."""


@public
def head_relevance(
    model: HookedDiffusion,
    prompts: str | Sequence[str] | Run,
    *,
    concepts: Any = PUBLISHED_CONCEPTS,
    include_start_token: bool = True,
    vote: str = "argmax",
    seed: int = DEFAULT_SEED,
    batch_size: int = 1,
    steps: Any = None,
    per_step: bool = True,
    checkpoint: str | Path | None = None,
    checkpoint_every: Count = 50,
    show_progress: bool = True,
    **settings: PipelineSetting,
) -> HeadRelevance:
    """Count at every step which concept each head that reads the text attends to most.

    While the model generates, the image's queries of each head also meet the keys of words of every
    concept (one drawn for each concept); the concept with the largest mean attention gets the
    head's vote. The generation is untouched, bit for bit. Since heads choose between concepts, the
    vectors are relative to the set of concepts: adding or leaving out one changes all others, and
    needs a new run.

    Args:
        model: A U-Net, PixArt, Wan or LTX-Video model (every cross-attention head); or one with
            concept streams, such as Flux, SD3, Qwen-Image or Z-Image (every head of the blocks that
            carry them; there the words' keys come from such streams).
        prompts: What to generate; many and varied. The paper takes 2,100 and finds 1,000 enough.
        concepts: Concept to its words; by default the paper's 34 with 10 words each. A concept of
            one's own is added with `{**PUBLISHED_CONCEPTS, "Tableware": ["Plate", …]}`.
        include_start_token: Let the start token take part in the softmax, as the published code
            does and the text does not say. MM-DiTs and models that T5 reads for have none.
        vote: `"argmax"` as published; `"margin"` or `"strength"`, see `cast_votes`.
        seed: Prompt number i gets noise from seed + i; words are drawn from a generator of their
            own, seeded with this and the number of the batch's first prompt. A `Run` with several
            seeds gives each prompt its own.
        batch_size: Prompts generated at once. They share the drawn words.
        steps: Steps to count; None for all.
        per_step: Keep the votes of every step apart; else the memory does not grow with steps.
        checkpoint: Folder in which to keep what was counted so far; the same run, started again,
            goes on from there. It is for one run and one process at a time.
        checkpoint_every: After how many prompts to write there.
        show_progress: Show a progress bar.
        **settings: Arguments of the pipeline's own call. Negative prompts, embeddings and images
            may be one for all prompts or one for each; `latents` and several generators are one
            for each image.

    Returns:
        Votes and vectors.

    Raises:
        ConceptError: On bad concepts, an unknown vote, and settings that do not pair with prompts.
        UnsupportedModelError: If no head of the model reads text in a known way.
        ResultError: If the checkpoint is of another run, damaged, or in use.

    Source: arXiv 2412.02237, section 3. Differs: random words come from an explicit generator;
    MM-DiTs, votes other than argmax and intervals are ours.
    """
    refuse_unknown("vote", vote, VOTES, error=ConceptError)
    run = Run.of(prompts, seed=seed, settings={"output_type": "latent", **settings})
    if not run.prompts:
        raise ConceptError("head_relevance needs prompts as words; none were given")
    _refuse_lost_noise(run, checkpoint)
    seeded = _seeded(run)
    batches(seeded, batch_size, error=ConceptError)  # refuses what does not pair, before any work
    length = run.text_length
    encoding = {name: run.settings[name] for name in ENCODING if name in run.settings}
    words = ConceptWords.encode(model, concepts, max_sequence_length=length, settings=encoding)
    joint = model.spec.concepts is not None
    heads = text_heads(model)
    votes = HeadRelevanceVotes(
        words,
        heads,
        None if joint else cross_attention_keys(model, words.embeddings),
        vote=vote,
        include_start_token=include_start_token and not joint and words.starts,
        parts=min(PARTS, len(run.prompts)),
        per_step=per_step,
    )
    counted_with = {"words_seed": seed, "batch_size": batch_size}
    made_by = _about(model, run, votes, steps) | counted_with
    mark = {} if checkpoint is None else _fingerprint(model, seeded, made_by, steps)
    keeper = Checkpoint(checkpoint, checkpoint_every, mark)
    with keeper.held():
        done = keeper.resume(votes)
        bar = tqdm(total=len(run.prompts), initial=done, disable=not show_progress, unit="prompt")
        with bar:
            for numbers, batch in batches(seeded, batch_size, start=done, error=ConceptError):
                _count(model, batch, numbers, votes, steps=steps, seed=seed, joint=joint)
                bar.update(len(numbers))
                if keeper.due(numbers[-1] + 1):
                    keeper.write(result_of(votes, made_by=made_by))
    return replace(result_of(votes, made_by=made_by), prompts=len(run.prompts))


@public
def text_heads(model: HookedDiffusion) -> tuple[Head, ...]:
    """Every head through which the image reads the text and whose relevance can be counted.

    Args:
        model: The model.

    Returns:
        In order of execution (down, mid, up in a U-Net). Names are as in the paper's files:
        `"up, layer: 8, head: 4"`, layers counted inside each place.

    Raises:
        UnsupportedModelError: If there is none.
    """
    joint = model.spec.concepts is not None
    carrying = {block.index for block in carriers(model.points)}
    ending = ".attn.img.hook_q" if joint else f".{CROSS_QUERIES}"
    found: list[Head] = []
    layers: dict[str, int] = {}
    for point in model.points.values():
        if point.block is None or not point.name.endswith(ending):
            continue
        if joint and point.block not in carrying:
            continue
        place = re.split(r"_block|\.", point.module, maxsplit=1)[0]
        layer = layers.setdefault(place, 0)
        layers[place] += 1
        found += [
            Head(point.block, head, point.module, f"{place}, layer: {layer}, head: {head}")
            for head in range(point.heads or 0)
        ]
    if not found:
        raise UnsupportedModelError(
            f"{type(model.denoiser).__name__} has no cross-attention to text and no concept "
            "streams, by which head relevance is counted; `analyses.head_patterns` says what its "
            "heads read"
        )
    return tuple(found)


@public
def result_of(votes: HeadRelevanceVotes, *, made_by: Mapping[str, Any]) -> HeadRelevance:
    """What a collector has counted, as a result.

    Args:
        votes: The collector, after at least one run.
        made_by: What was run.
    """
    steps = tuple(sorted(votes.totals))
    counted = torch.stack([votes.totals[step] for step in steps]).mT
    parts = votes.parts.mT
    if votes.vote == "argmax":
        counted, parts = counted.round().long(), parts.round().long()
    return HeadRelevance(
        vectors=vectors_of(counted.sum(0)),
        concepts=tuple(votes.words.concepts),
        words=dict(votes.words.concepts),
        heads=votes.heads,
        votes=counted.contiguous(),
        parts=parts.contiguous(),
        prompts_in_parts=tuple(votes.prompts_in_parts),
        steps=steps,
        vote=votes.vote,
        prompts=sum(votes.prompts_in_parts),
        made_by=dict(made_by),
    )


def _refuse_lost_noise(run: Run, checkpoint: Any) -> None:
    """Refuse checkpoints of noise that a run which goes on could not draw again."""
    if checkpoint is None:
        return
    if isinstance(run.settings.get("generator"), torch.Generator):
        raise ConceptError(
            "checkpoint= with a single generator=: how far it was drawn from is not kept, so that "
            "a run that goes on would get other noise; give seed=, or a list with a generator for "
            "each image"
        )


def _seeded(run: Run) -> Run:
    """The run with a seed for each prompt, unless it brings its own noise."""
    if not isinstance(run.seed, int) or "generator" in run.settings:
        return run
    return run.with_(seed=[run.seed + at for at in range(len(run.prompts))])


def _count(
    model: HookedDiffusion,
    run: Run,
    numbers: Sequence[int],
    votes: HeadRelevanceVotes,
    *,
    steps: Any,
    seed: int,
    joint: bool,
) -> None:
    """Generate a batch and count."""
    generator = torch.Generator().manual_seed(1_000_003 * (seed + 1) + numbers[0])
    samples = [number for number in numbers for _ in range(run.images_per_prompt)]
    if not joint:
        votes.begin(samples, generator=generator)
        site = Site(f"blocks.*.{CROSS_QUERIES}", steps=steps, branch="cond")
        model.run_with_hooks(run, fwd_hooks=[(site, votes)])
    else:
        words = votes.words
        rows, owners = words.draw(generator, include_start_token=False)
        votes.begin(samples, generator=generator, owners=owners)
        blocks = list(votes.offsets)
        with model.concept_streams(words.embeddings[None, rows], blocks=blocks) as streams:
            hooks = [
                (Site(f"blocks.{block}.attn.{name}", steps=steps, branch="cond"), hook)
                for block in streams.blocks
                for name, hook in (
                    ("img.hook_q", votes.on_image),
                    ("concept.hook_k", votes.on_keys),
                )
            ]
            model.run_with_hooks(run, fwd_hooks=hooks)
    votes.end()


def _about(
    model: HookedDiffusion, run: Run, votes: HeadRelevanceVotes, steps: Any
) -> dict[str, Any]:
    listed = "\n".join(run.prompts).encode()
    return {
        "model": model.name,
        "prompts": len(run.prompts),
        "prompts_sha256": hashlib.sha256(listed).hexdigest(),
        "seed": run.seed if isinstance(run.seed, int) else repr(run.seed),
        "settings": repr(run.with_(prompt="…", seed=0)),
        "scheduler": repr(model.pipe and type(model.pipe.scheduler).__name__),
        "words": {name: list(words) for name, words in votes.words.concepts.items()},
        "include_start_token": votes.include_start_token,
        "vote": votes.vote,
        "steps": repr(steps),
        "per_step": votes.per_step,
    }


def _fingerprint(
    model: HookedDiffusion, run: Run, made_by: Mapping[str, Any], steps: Any
) -> dict[str, str]:
    """What must be the same for counts to be added up: the model, the run, and how was counted."""
    counted = {name: made_by[name] for name in COUNTED}
    return fingerprint(model, run, steps=steps, **counted)
