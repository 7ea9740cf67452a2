"""Prompt-to-Prompt: edits of an image by editing its prompt.

Source: Hertz et al., Prompt-to-Prompt Image Editing with Cross Attention Control, arXiv 2208.01626;
with head relevance, Park et al., arXiv 2412.02237, section 5.2 and appendix E.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from diffusion_lens import HookedDiffusion, Run, Site
from diffusion_lens.analyses.concept_steering import refuse_other_heads
from diffusion_lens.analyses.edited_images import (
    EditedImages,
    edited_images,
    edited_run,
    inference_steps,
)
from diffusion_lens.analyses.head_relevance import HeadRelevance
from diffusion_lens.analyses.prompt_to_prompt.controller import (
    EditCrossAttention,
    KeepSelfAttention,
    TextEdit,
)
from diffusion_lens.analyses.prompt_to_prompt.schedule import cross_steps, self_steps
from diffusion_lens.analyses.prompt_to_prompt.word_maps import (
    BlendLatents,
    LocalBlend,
    WordMaps,
    blend_words,
    map_sites,
)
from diffusion_lens.analyses.prompt_to_prompt.words import (
    align,
    refuse_other_texts,
    tokens_of,
    word_columns,
)
from diffusion_lens.authoring import DEFAULT_SEED
from diffusion_lens.border import Count, Fraction, Number, PipelineSetting, public
from diffusion_lens.errors import ConceptError, RunError, UnsupportedModelError

CITATION = (
    "Hertz et al., Prompt-to-Prompt Image Editing with Cross Attention Control, arXiv 2208.01626"
)
CITATION_HRV = f"{CITATION}; Park et al., arXiv 2412.02237"


@public
def prompt_to_prompt(
    model: HookedDiffusion,
    source: str | Sequence[str] | Run,
    targets: str | Sequence[str],
    *,
    cross_replace: Fraction | Sequence[Fraction] = 0.8,
    self_replace: Fraction | Sequence[Fraction] = 0.4,
    edit: str = "replace",
    word_ranges: Mapping[str, Fraction | Sequence[Fraction]] | None = None,
    reweight: Mapping[str, Number] | None = None,
    local_blend: LocalBlend | None = None,
    relevance: HeadRelevance | None = None,
    concept: str | Sequence[str] | None = None,
    clamp: Number | None = None,
    self_max_tokens: Count = 256,
    keep_maps: bool = False,
    seed: int | Sequence[int] = DEFAULT_SEED,
    **settings: PipelineSetting,
) -> EditedImages:
    """Generate a source image and edits of it that keep its layout.

    Source and targets are rows of one run with the same noise. In the conditional branch a target
    attends to the text as the source does, its changed words to what the source's words attended
    to, and for some steps its image attends to itself as the source's does. Nothing is
    renormalised. The source's row is untouched.

    Args:
        model: A model whose image reads text by attention.
        source: The source prompt, or a `Run` of one.
        targets: A target prompt or several; each is an edit of the source.
        cross_replace: For which share of the steps columns over text are the source's; a number is
            the share from the first step on, a pair where it begins and ends.
        self_replace: The same for self-attention. 0.9 is the published choice with `relevance`.
        edit: `"replace"` replaces words one by one in prompts of equally many words; `"refine"`
            aligns the tokens of any two prompts and leaves what only the target has to itself;
            `"reweight"` keeps the prompt.
        word_ranges: Ranges in place of `cross_replace` for single words of the targets.
        reweight: Factors on the attention to words of the targets, with any `edit`.
        local_blend: Keep the source's latents outside of what some words attend to.
        relevance: Head relevance vectors: changed words then keep their own pattern, times the
            vector of a concept, in place of the source's (P2P-HRV).
        concept: The concept of the changed words; one for all targets, or one for each.
        clamp: Largest element of a vector; the paper takes 9 for SDXL and none for SD 1.4.
        self_max_tokens: Self-attention over more image positions is left alone; published code has
            256 (16 x 16) or 1024.
        keep_maps: Also keep where each row attends to its edited words.
        seed: Noise of all rows.
        **settings: Arguments of the pipeline's own call; `latents` of one row serve all.

    Returns:
        Images and latents, the source's first.

    Raises:
        WordError: If words cannot be paired or are not in a prompt.
        RunError: If there are several sources, or a range or a choice is none.
        ConceptError: If a concept is unknown, or one of `relevance` and `concept` is missing.
        UnsupportedModelError: If the image reads no text by attention.

    Source: arXiv 2208.01626, sections 3 and 4; limits of steps are those of the released code.
    Differs: other families than Stable Diffusion are ours.
    """
    run = edited_run(source, targets, seed=seed, settings=settings)
    prompts = run.prompts
    if not model.text_pattern_sites():
        raise UnsupportedModelError(
            f"in {model.name} no image position attends to text, so that there is nothing to edit; "
            "`masactrl` and `sdedit` edit without"
        )
    refuse_other_texts(model, run)
    steps = inference_steps(model, run)
    hooks = _cross_hooks(
        model,
        run,
        steps,
        edit=edit,
        cross_replace=cross_replace,
        word_ranges=dict(word_ranges or {}),
        reweight=dict(reweight or {}),
        factors=_factors(model, relevance, concept, clamp, len(prompts) - 1),
    )
    if edit == "reweight" and not reweight:
        raise RunError(
            'edit="reweight" needs reweight=, a factor by word: without it, nothing is edited'
        )
    hooks += self_attention_hooks(model, self_steps(self_replace, steps=steps), self_max_tokens)
    kept = WordMaps(_edited_tokens(model, run, edit)) if keep_maps else None
    hooks += [(site, kept) for site in map_sites(model)] if kept is not None else []
    if local_blend is not None:
        blend, sites = _blend(model, local_blend, run)
        hooks += [(site, blend.maps) for site in sites]
        run = run.with_(callback_on_step_end=blend)
    out = model.run_with_hooks(run, fwd_hooks=hooks)
    return edited_images(
        out,
        method="prompt_to_prompt",
        citation=CITATION if relevance is None else CITATION_HRV,
        maps=None if kept is None else kept.mean(),
        edit=edit,
        cross_replace=cross_replace,
        self_replace=self_replace,
        word_ranges=dict(word_ranges or {}),
        reweight=dict(reweight or {}),
        local_blend=local_blend,
        concept=concept,
    )


def _cross_hooks(
    model: HookedDiffusion,
    run: Run,
    steps: int,
    *,
    edit: str,
    cross_replace: Any,
    word_ranges: Mapping[str, Any],
    reweight: Mapping[str, float],
    factors: Sequence[Mapping[tuple[int, int], float]],
) -> list[tuple[Site, Any]]:
    targets = run.prompts[1:]
    ranges = word_columns(model, run, word_ranges, argument="word_ranges")
    weights = word_columns(model, run, reweight, argument="reweight")

    @functools.cache
    def plan(length: int) -> TextEdit:
        alignments = [align(model, run, target, edit=edit, length=length) for target in targets]
        alpha = cross_steps(cross_replace, word_ranges, ranges, steps=steps, length=length)
        equaliser = torch.ones(len(targets), length)
        scaled = torch.zeros(len(targets), length)
        for number, alignment in enumerate(alignments):
            scaled[number, list(alignment.edited)] = 1
            for word, tokens in weights[number].items():
                equaliser[number, list(tokens)] = float(reweight[word])
        return TextEdit(alignments, alpha, equaliser, scaled)

    first = plan(_least_length(model, run))  # whatever is wrong with the words, says so now
    if factors and not first.scaled.any(1).all():
        raise RunError(
            "relevance= scales the words that an edit changes, but a target changes none; to "
            "strengthen a word of an unchanged prompt call `steer_word`"
        )
    active = [step for step, alpha in enumerate(first.alpha) if alpha.any()]
    if not active:
        return []
    hook = EditCrossAttention(edit, plan, factors)
    # The released code counts one step more than most schedulers make: it need not come.
    last = None if active[-1] >= steps else active[-1] + 1
    during = slice(active[0], last)
    return [(site.with_(branch="cond", steps=during), hook) for site in model.text_pattern_sites()]


def self_attention_hooks(
    model: HookedDiffusion, steps: range, most: int
) -> list[tuple[Site, KeepSelfAttention]]:
    """The hooks that let every row's image attend to itself as row 0's does.

    Args:
        model: The model.
        steps: At which steps.
        most: Largest number of image positions of an attention that is changed.

    Raises:
        UnsupportedModelError: If the image does not attend to itself.
    """
    if not len(steps):
        return []
    apart, joint = [], []
    for point in model.points.values():
        if point.name.endswith("attn.hook_pattern") and point.block is not None:
            keys, queries = point.sequences["key"], point.sequences["query"]
            if keys == queries == ("img",):
                apart.append(point)
            elif "img" in keys and "img" in queries:
                joint.append(point)
    if not apart and not joint:
        raise UnsupportedModelError(
            f"in {model.name} no image position attends to the image; give self_replace=0"
        )
    hook = KeepSelfAttention(most, max(point.block for point in (*apart, *joint)))
    places: list[Site] = [
        Site(point.name.removesuffix("hook_pattern") + name, branch="cond", steps=steps)
        for point in apart
        for name in ("img.hook_q", "img.hook_k")
    ]
    # In a joint attention the text has the same queries and keys, which stay: the pattern's block.
    places += [
        Site(point.name, query="img", key="img", branch="cond", steps=steps) for point in joint
    ]
    return [(site, hook) for site in places]


def _factors(
    model: HookedDiffusion,
    relevance: HeadRelevance | None,
    concept: str | Sequence[str] | None,
    clamp: float | None,
    targets: int,
) -> list[Mapping[tuple[int, int], float]]:
    """For each target the factors of its concept."""
    if relevance is None and concept is None:
        return []
    if relevance is None or concept is None:
        raise ConceptError(
            "relevance= and concept= go together: head relevance vectors, and the concept of the "
            f"words that change; got relevance={relevance!r}, concept={concept!r}"
        )
    refuse_other_heads(model, relevance)
    concepts = [concept] * targets if isinstance(concept, str) else list(concept)
    if len(concepts) != targets:
        raise ConceptError(
            f"concept={concept!r} are {len(concepts)} for {targets} targets; give one, or one each"
        )
    bound = float("inf") if clamp is None else clamp
    return [relevance.factors(relevance.vector(one).clamp(max=bound)) for one in concepts]


def _edited_tokens(model: HookedDiffusion, run: Run, edit: str) -> list[tuple[int, ...]]:
    """For each row the tokens of words that differ; all words of a row without any."""
    length = _least_length(model, run)
    found = [align(model, run, one, edit=edit, length=length) for one in run.prompts[1:]]
    source = tuple(sorted({token for one in found for token in one.source_edited}))
    rows = [source, *(one.edited for one in found)]
    every = [
        tuple(
            at for at, span in zip(tokens.positions, tokens.spans, strict=True) if span[0] < span[1]
        )
        for tokens in tokens_of(model, run, run.prompts)
    ]
    return [row or words for row, words in zip(rows, every, strict=True)]


def _blend(model: HookedDiffusion, blend: LocalBlend, run: Run) -> tuple[BlendLatents, list[Site]]:
    words = blend_words(blend, len(run.prompts))
    tokens = [
        tuple(position for word in some for position in tokens.find(word))
        for tokens, some in zip(tokens_of(model, run, run.prompts), words, strict=True)
    ]
    maps = WordMaps(tokens)
    theirs = run.settings.get("callback_on_step_end")
    return BlendLatents(maps, blend.threshold, theirs), map_sites(model, blend.level)


def _least_length(model: HookedDiffusion, run: Run) -> int:
    """Number of text tokens that all prompts fit in."""
    return 1 + max(max(tokens.positions) for tokens in tokens_of(model, run, run.prompts))
