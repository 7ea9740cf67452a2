"""Concept and image vectors to saliency: dot products and a softmax."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from diffusion_lens.analyses.concept_attention.presets import SOFTMAX
from diffusion_lens.border import public
from diffusion_lens.errors import ConceptError, refuse_unknown


@public
def concept_scores(
    concepts: Float[Tensor, "batch concept d"],
    image: Float[Tensor, "batch pos d"],
    *,
    softmax_over: str = "concepts",
    temperature: float = 1.0,
) -> Float[Tensor, "batch concept pos"]:
    """Dot products of concept and image vectors, normalised.

    Args:
        concepts: One vector for each concept; heads joined, neither scaled nor normalised.
        image: One vector for each image token, in the same space.
        softmax_over: `"concepts"`: which concept is it here; `"patches"`: where is this concept;
            `"nothing"`: the products themselves.
        temperature: What the products are divided by before the softmax.

    Returns:
        In [0, 1] after a softmax, summing to 1 over the axis that it went over (so that a single
        concept has 1 everywhere after one over concepts).

    Raises:
        ConceptError: If `softmax_over` is unknown.

    Source: ConceptAttention, arXiv 2502.04320, equation 11; their $o_c$ is `concepts`, their $o_x$
    is `image`.
    """
    refuse_unknown("softmax_over", softmax_over, SOFTMAX, error=ConceptError)
    products = concepts.float() @ image.float().mT
    return normalised(products, softmax_over=softmax_over, temperature=temperature)


def normalised(
    products: Float[Tensor, "*batch concept pos"], *, softmax_over: str, temperature: float
) -> Float[Tensor, "*batch concept pos"]:
    """Products after the softmax, where there is one.

    Args:
        products: Of concept and image vectors.
        softmax_over: As for `concept_scores`.
        temperature: Likewise.
    """
    dim = SOFTMAX[softmax_over]
    return products if dim is None else (products / temperature).softmax(dim)
