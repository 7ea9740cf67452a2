"""Attend-and-Excite: no word of the prompt is left without attention.

Source: Chefer et al., Attend-and-Excite: Attention-Based Semantic Guidance for Text-to-Image
Diffusion Models, arXiv 2301.13826; with head relevance, Park et al., arXiv 2412.02237, section 5.3.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusion_lens import HookedDiffusion, Run, Site
from diffusion_lens.analyses.attend_and_excite.maps import (
    Columns,
    mean_attention,
    relevant_attention,
    token_maxima,
)
from diffusion_lens.analyses.attend_and_excite.result import ExcitedImages
from diffusion_lens.analyses.attend_and_excite.rule import THRESHOLDS, Excite, ScaleRange
from diffusion_lens.analyses.concept_steering import refuse_other_heads
from diffusion_lens.analyses.edited_images import inference_steps
from diffusion_lens.analyses.head_relevance import HeadRelevance
from diffusion_lens.analyses.prompt_to_prompt.word_maps import map_sites
from diffusion_lens.analyses.prompt_to_prompt.words import refuse_other_texts
from diffusion_lens.authoring import DEFAULT_SEED, PromptTokens
from diffusion_lens.border import (
    Count,
    Fraction,
    Index,
    Number,
    PipelineSetting,
    Positive,
    Size,
    public,
)
from diffusion_lens.errors import (
    ConceptError,
    RunError,
    UnsupportedModelError,
    WordError,
    refuse_unknown,
)
from diffusion_lens.interventions.latent_update import LatentUpdate, run_with_latent_update
from diffusion_lens.interventions.pattern_gradient import Activations

COMPETING = ("all", "without_last", "prompt")
SATURATED = 1 - 1e-4
"""A loss above it has next to no gradient: the softmax is flat."""
CITATION = "Chefer et al., Attend-and-Excite, arXiv 2301.13826"
CITATION_HRV = f"{CITATION}; Park et al., arXiv 2412.02237"


@dataclass(frozen=True)
class NeglectLoss:
    """How much attention the least attended token lacks: `max_s max(0, 1 - m_s)`.

    Attributes:
        tokens: The tokens.
        factors: For each token the head relevance of its concept, by (block, head); None for the
            plain mean over heads.
        side: Shorter side of the grid at which maps are compared.
        columns: Which tokens compete in the softmax.
        smooth: Standard deviation of the smoothing; None for none.
    """

    tokens: tuple[int, ...]
    factors: tuple[dict[tuple[int, int], float], ...] | None
    side: int | None
    columns: Columns
    smooth: float | None

    def maxima(self, seen: Activations) -> Tensor:
        """The largest attention that each token gets."""
        if self.factors is None:
            maps = [mean_attention(seen, side=self.side)] * len(self.tokens)
        else:
            maps = [relevant_attention(seen, one, side=self.side) for one in self.factors]
        return token_maxima(maps, self.tokens, columns=self.columns, smooth=self.smooth)

    def __call__(self, seen: Activations) -> Tensor:
        """The loss."""
        return (1 - self.maxima(seen)).clamp(min=0).max()


@public
def attend_and_excite(
    model: HookedDiffusion,
    prompt: str | Sequence[str] | Run,
    *,
    words: str | int | Sequence[str | int],
    relevance: HeadRelevance | None = None,
    concepts: str | Sequence[str] | Mapping[str, str] | None = None,
    thresholds: Mapping[Index, Fraction] = THRESHOLDS,
    max_iter_to_alter: Index = 25,
    step_size: Number = 20.0,
    scale_range: ScaleRange = (1.0, 0.5),
    max_rounds: Count = 20,
    smooth: Positive | None = 0.5,
    resolution: Size | None = None,
    competing: str = "all",
    checkpoint: bool = True,
    seed: int | Sequence[int] = DEFAULT_SEED,
    **settings: PipelineSetting,
) -> ExcitedImages:
    """Generate while the latents are moved so that every named word is attended to somewhere.

    Before each of the first steps the conditional branch is evaluated with autograd, and the
    latents go down the gradient of what the least attended word lacks. A large attention does not
    say that the thing was drawn, nor a small one that it was not; and latents that were moved far
    give images unlike any that the model was trained on.

    Args:
        model: A model whose image reads text by attention.
        prompt: The prompt, or a `Run` of one.
        words: The words that must not be neglected, or positions in the text stream. Every token of
            a word counts on its own.
        relevance: Head relevance vectors. Maps are then means over all heads of all resolutions,
            weighted by the vector of the word's concept (A&E-HRV), in place of the plain mean over
            the heads of one resolution.
        concepts: The concept of each word; one for all, one for each, or by word.
        thresholds: By step, the attention up to which the latents are moved again and again there.
        max_iter_to_alter: The step from which on latents are left alone, but at those of
            `thresholds`.
        step_size: Of a move, times a factor that falls along the run. It suits latents of Stable
            Diffusion.
        scale_range: The square of that factor, at the first step and at the last.
        max_rounds: Most moves at a step with a threshold.
        smooth: Standard deviation of the Gaussian over the maps, in positions; None for none, as
            the published code for head relevance has it by default.
        resolution: Shorter side of the maps. By default the attention nearest to a quarter of the
            latents' side (16 for Stable Diffusion at 512 pixels); with `relevance` the coarsest one
            (8 there), as published.
        competing: Which tokens the softmax is over, the start token apart: `"all"`;
            `"without_last"`, as the release of Attend-and-Excite does it; or those of the
            `"prompt"`, without end token and padding.
        checkpoint: Recompute blocks in the backward pass in place of keeping what they computed.
        seed: Of the noise.
        **settings: Arguments of the pipeline's own call.

    Returns:
        Image, latents, and the loss before every move.

    Raises:
        WordError: If a word is not in the prompt, or its token is not among those that compete.
        RunError: If there are several prompts, or a resolution, step or choice is none.
        ConceptError: If a concept is unknown, or one of `relevance` and `concepts` is missing.
        UnsupportedModelError: If the image reads no text by attention, or is a video.

    Source: arXiv 2301.13826, sections 3 and 4, and the released code. Differs: other families than
    Stable Diffusion are ours.
    """
    run = _one_prompt(prompt, seed, settings)
    sites = _sites(model, resolution, relevance)
    refuse_other_texts(model, run)
    tokens = model.prompt_tokens(run.prompts[0], run=run)
    subjects = _subjects(run.prompts[0], tokens, words)
    refuse_unknown("competing", competing, COMPETING, error=RunError)
    loss = NeglectLoss(
        tuple(token for tokens in subjects.values() for token in tokens),
        _factors(model, relevance, concepts, subjects),
        resolution,
        _columns(tokens, competing),
        smooth,
    )
    rule = Excite(step_size, scale_range, dict(thresholds), max_iter_to_alter, max_rounds)
    if not rule.thresholds and max_iter_to_alter < 1:
        raise RunError(
            f"max_iter_to_alter={max_iter_to_alter} and no thresholds: the latents would never be "
            "moved; give at least one step"
        )
    _refuse_steps_beyond(rule, 1 + inference_steps(model, run))  # PNDM makes one more
    update = LatentUpdate(sites, loss, rule, checkpoint)
    out = run_with_latent_update(model, run, update)
    _refuse_steps_beyond(rule, out.made_by.steps)
    if rule.losses and min(loss for _, loss in rule.losses) > SATURATED:
        where = "the default resolution" if resolution is None else f"resolution={resolution}"
        warnings.warn(
            f"the loss was 1 before every move: at {where} another token takes all attention "
            "everywhere, the softmax is flat there and the latents hardly moved; try another "
            'resolution=, or competing="prompt"',
            stacklevel=3,
        )
    assert out.latents is not None
    if not out.latents.isfinite().all():
        raise RunError(
            f"step_size={step_size!r} moved the latents until they were no numbers any more; give "
            "a smaller one (20 is the published one)"
        )
    return ExcitedImages(
        prompt=run.prompts[0],
        words={str(word): tokens for word, tokens in subjects.items()},
        images=out.images,
        latents=out.latents,
        losses=torch.tensor([value for _, value in rule.losses]),
        steps=tuple(step for step, _ in rule.losses),
        made_by={
            **out.made_by.as_dict(),
            "concepts": concepts
            if concepts is None or isinstance(concepts, str)
            else repr(concepts),
            "rule": repr(rule),
            "smooth": smooth,
            "resolution": resolution,
            "competing": competing,
        },
        citation=CITATION if relevance is None else CITATION_HRV,
    )


def _one_prompt(prompt: Any, seed: Any, settings: dict[str, Any]) -> Run:
    run = Run.of(prompt, seed=seed, settings=settings)
    if len(run.prompts) != 1 or run.samples != 1:
        raise RunError(
            f"attend_and_excite moves the latents of one image, {run.samples} of the prompts "
            f"{run.prompts!r} were asked for; call it for each prompt and seed"
        )
    return run


def _sites(
    model: HookedDiffusion, resolution: int | None, relevance: HeadRelevance | None
) -> list[Site]:
    every = model.text_pattern_sites()
    if not every:
        raise UnsupportedModelError(
            f"in {model.name} no image position attends to text, so that no word can be excited; "
            "guide it by prompts, or edit its images with `masactrl` or `sdedit`"
        )
    return map_sites(model) if relevance is None and resolution is None else every


def _subjects(
    prompt: str, tokens: PromptTokens, words: str | int | Sequence[str | int]
) -> dict[str | int, tuple[int, ...]]:
    listed = [words] if isinstance(words, str | int) else list(words)
    if not listed:
        raise WordError("words= is empty; name the words that must not be neglected")
    for word in listed:
        if isinstance(word, int) and word not in tokens.positions:
            raise WordError(
                f"the prompt {prompt!r} has no token {word}; it has {list(tokens.positions)}"
            )
    return {word: (word,) if isinstance(word, int) else tokens.find(word) for word in listed}


def _columns(tokens: PromptTokens, competing: str) -> Columns:
    first = 1 if tokens.spans[0][0] == tokens.spans[0][1] else 0
    if competing == "all":
        return Columns(first)
    if competing == "without_last":
        return Columns(first, -1)
    covered = [
        at for at, span in zip(tokens.positions, tokens.spans, strict=True) if span[0] < span[1]
    ]
    return Columns(first, max(covered) + 1)


def _factors(
    model: HookedDiffusion,
    relevance: HeadRelevance | None,
    concepts: Any,
    subjects: Mapping[str | int, tuple[int, ...]],
) -> tuple[dict[tuple[int, int], float], ...] | None:
    """For each token the factors of its word's concept."""
    if relevance is None and concepts is None:
        return None
    if relevance is None or concepts is None:
        raise ConceptError(
            "relevance= and concepts= go together: head relevance vectors, and the concept of each "
            f"word; got relevance={relevance!r}, concepts={concepts!r}"
        )
    refuse_other_heads(model, relevance)
    if isinstance(concepts, str):
        named = [concepts] * len(subjects)
    elif isinstance(concepts, Mapping):
        missing = [word for word in subjects if word not in concepts]
        if missing:
            raise ConceptError(f"concepts= names no concept of {missing[0]!r}: {dict(concepts)!r}")
        named = [concepts[word] for word in subjects]
    else:
        named = list(concepts)
    if len(named) == 1:
        named = named * len(subjects)
    if len(named) != len(subjects):
        raise ConceptError(
            f"{len(named)} concepts for {len(subjects)} words; give one for all or one for each"
        )
    by_concept = {one: relevance.factors(relevance.vector(one)) for one in named}
    return tuple(
        by_concept[one]
        for one, tokens in zip(named, subjects.values(), strict=True)
        for _ in tokens
    )


def _refuse_steps_beyond(rule: Excite, steps: int) -> None:
    beyond = [step for step in rule.thresholds if step >= steps]
    if beyond and rule.thresholds != THRESHOLDS:
        raise RunError(
            f"thresholds= names the steps {beyond}, the run has at most {steps} (0 to "
            f"{steps - 1}); raise num_inference_steps, or name earlier steps"
        )
