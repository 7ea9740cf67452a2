"""Concepts are encoded by the pipeline's own method, and are no prompts of a run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from diffusion_lens import HookedDiffusion
from diffusion_lens.analyses.head_relevance.words import ConceptWords
from diffusion_lens.concept_streams.encoding import encode_concepts, encode_together, pooled_of
from diffusion_lens.engine.observing import observed
from tests.pipelines import shared_pipe

WORDS = {"animals": ["cat", "dog"], "colors": ["red"]}


def told_by(pipe: Any, encode: Callable[[], Any]) -> int:
    """How many calls somebody who observes the pipeline's text encoding is told of."""
    told: list[Any] = []

    def tell(original: Callable, *args: Any, **kwargs: Any) -> Any:
        told.append(args)
        return original(*args, **kwargs)

    with observed(pipe, "encode_prompt", tell):
        encode()
    return len(told)


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_encoding_concepts_is_no_prompt_of_a_run(family: str) -> None:
    model = HookedDiffusion(shared_pipe(family))
    pipe, parts, device = model.pipe, model.spec.text_parts, torch.device("cpu")
    for encode in (
        partial(encode_concepts, pipe, parts, ["cat"], first=True, device=device),
        partial(encode_together, pipe, parts, ["cat"], device=device),
        partial(pooled_of, pipe, ["cat"], device=device),
        partial(ConceptWords.encode, model, WORDS),
    ):
        assert told_by(pipe, encode) == 0
    assert told_by(pipe, lambda: pipe.encode_prompt("a cat", None, None)) == 1  # type: ignore[union-attr]


def test_observed_or_not_the_embeddings_are_the_same() -> None:
    model = HookedDiffusion(shared_pipe("sd"))
    expected, found = ConceptWords.encode(model, WORDS), []
    assert told_by(model.pipe, lambda: found.append(ConceptWords.encode(model, WORDS))) == 0
    assert torch.equal(found[0].embeddings, expected.embeddings)
