"""Concept strengthening, concept adjusting and SD-HRV: a word's attention rescaled head by head.

Source: Park et al., Cross-Attention Head Position Patterns Can Align with Human Visual Concepts in
Text-to-Image Generative Models, arXiv 2412.02237, section 5 and appendix D.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_lens import HookedDiffusion, Output, Run, Site
from diffusion_lens.analyses.head_relevance.head_relevance import text_heads
from diffusion_lens.analyses.head_relevance.result import HeadRelevance
from diffusion_lens.authoring import DEFAULT_SEED
from diffusion_lens.border import Number, PipelineSetting, Seed, public
from diffusion_lens.errors import ConceptError, RunError
from diffusion_lens.interventions import scale_token_columns
from diffusion_lens.interventions.tokens import ScaleTokenColumns

Factors = Mapping[tuple[int, int], Number]


@public
def rescaling_vector(
    desired: Float[Tensor, " head"],
    undesired: Float[Tensor, " _head"] | None = None,
    *,
    clamp: Number | None = None,
) -> Float[Tensor, " head"]:
    """Factors that turn a word towards one concept, and away from another.

    Concept strengthening is the desired vector itself; concept adjusting is twice the desired minus
    the undesired one. Both sum to the number of heads. Elements of the difference can be negative,
    which turns round what a head reads from the word.

    Args:
        desired: Head relevance vector of the concept that the word should mean; one axis.
        undesired: That of the concept that it should not mean.
        clamp: Largest value of an element of either, before they are combined; the published code
            takes 9 for SDXL and none for SD 1.4.

    Returns:
        A factor for each head, 1 leaving it as it is.

    Raises:
        ConceptError: If the vectors are not of the same heads.

    Source: arXiv 2412.02237, section 5.1; $r = 2 h_{desired} - h_{undesired}$.
    """
    if undesired is not None and desired.shape != undesired.shape:
        raise ConceptError(
            f"the vectors are of {desired.shape[-1]} and {undesired.shape[-1]} heads; both must "
            "come from one model"
        )
    bound = float("inf") if clamp is None else clamp
    wanted = desired.clamp(max=bound)
    return wanted if undesired is None else 2 * wanted - undesired.clamp(max=bound)


@public
def rescale_word(
    model: HookedDiffusion,
    word: str | int | Sequence[int],
    factors: Factors,
    *,
    steps: Any = None,
    branch: str = "cond",
) -> list[tuple[Site, ScaleTokenColumns]]:
    """Make the hooks that multiply the attention to a word by a factor for each head.

    Rows of the pattern are not renormalised; other words' columns stay as they are.

    Args:
        model: The model.
        word: A word or phrase of the prompt, or token indices in the text stream. All occurrences
            of a word are meant.
        factors: Factors by (block, head); heads that are not named keep 1.
        steps: At which steps; None for all.
        branch: In which guidance branch.

    Returns:
        (Site, hook) pairs for `fwd_hooks`.

    Raises:
        RunError: If no head that reads text has a factor.
    """
    blocks = {block for block, _ in factors}
    hook = scale_token_columns(dict(factors))
    pairs = []
    for site in model.text_pattern_sites():
        block = model.points[str(site.name)].block
        if block in blocks:
            at = site.with_(key=("txt", word), steps=steps, branch=branch)
            pairs.append((at, hook))
    if not pairs:
        raise RunError(
            f"none of the factors is of a block that reads text: they are of {sorted(blocks)}, the "
            f"model has {model.n_blocks} blocks; factors go by (block, head)"
        )
    return pairs


@public
def steer_word(
    model: HookedDiffusion,
    prompts: str | Sequence[str] | Run,
    word: str | int | Sequence[int],
    relevance: HeadRelevance,
    *,
    desired: str,
    undesired: str | None = None,
    clamp: Number | None = None,
    steps: Any = None,
    seed: int | Sequence[int] = DEFAULT_SEED,
    **settings: PipelineSetting,
) -> Output:
    """Generate with a word turned towards one of its meanings (SD-HRV).

    Attention to the word is multiplied, head by head, by the vector of the desired concept
    (strengthening), or by twice that minus the undesired concept's (adjusting). It can only choose
    among what the word means to the model, and factors far from 1 damage the image: compare with a
    random vector of the same length.

    Args:
        model: The model from which the relevance was counted.
        prompts: A prompt, several in which the word stands at the same token, or a `Run`.
        word: A word or phrase of the prompt, or token indices.
        relevance: Head relevance vectors.
        desired: The concept that the word should mean.
        undesired: The concept that it should not mean.
        clamp: As for `rescaling_vector`.
        steps: At which steps; None for all.
        seed: As for a call of the model.
        **settings: Arguments of the pipeline's own call.

    Returns:
        What the model generated; `output.made_by` lists the hooks.

    Raises:
        ConceptError: If a concept is unknown, or the vectors are of another model's heads.
        WordError: If the word is not in the prompt, or stands at different tokens in a batch.

    Source: arXiv 2412.02237, section 5.1.
    """
    refuse_other_heads(model, relevance)
    other = None if undesired is None else relevance.vector(undesired)
    vector = rescaling_vector(relevance.vector(desired), other, clamp=clamp)
    hooks = rescale_word(model, word, relevance.factors(vector), steps=steps)
    return model.run_with_hooks(prompts, seed=seed, fwd_hooks=hooks, **settings)


def refuse_other_heads(model: HookedDiffusion, relevance: HeadRelevance) -> None:
    """Refuse vectors of a model with other heads.

    Blocks and heads of two models can have the same numbers and stand at different places, as those
    of SD 1.4 and SDXL, so that names are compared, too.

    Raises:
        ConceptError: If the heads of the result are not, one by one, those that are counted here.
    """
    theirs = [(head.block, head.head, head.name) for head in text_heads(model)]
    mine = [(head.block, head.head, head.name) for head in relevance.heads]
    if mine == theirs:
        return
    strange = [one for one in mine if one not in theirs]
    found = f", among them {strange[0][2]!r} (block {strange[0][0]})," if strange else ""
    raise ConceptError(
        f"the head relevance has {len(mine)} heads{found} and is of another model: {model.name} "
        f"has {len(theirs)} heads that read text, from {theirs[0][2]!r} to {theirs[-1][2]!r}. "
        "Count it with this model."
    )


@public
def random_vector_like(vector: Float[Tensor, " head"], *, seed: Seed = 0) -> Float[Tensor, " head"]:
    """A random vector to compare with: the same sum and the same distance from all ones.

    Args:
        vector: A rescaling vector.
        seed: Of the draw.

    Returns:
        1 plus a Gaussian direction of mean 0, scaled to the distance of `vector` from 1.
    """
    noise = torch.randn(vector.shape, generator=torch.Generator().manual_seed(seed))
    noise = noise - noise.mean()
    mean = vector.mean()
    return mean + noise * (vector - mean).norm() / noise.norm()
