"""Rescaling vectors by hand; words, indices and clear errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diffusion_lens import HookedDiffusion
from diffusion_lens.analyses.concept_steering import (
    random_vector_like,
    rescale_word,
    rescaling_vector,
    steer_word,
)
from diffusion_lens.analyses.head_relevance import Head, HeadRelevance, text_heads
from diffusion_lens.errors import ConceptError, HookNeverFiredError, RunError, WordError
from tests.pipelines import latents_of, shared_pipe, short

PROMPT = "a red cat on the glass table"


def model() -> HookedDiffusion:
    return HookedDiffusion(shared_pipe("sd"))


def settings() -> dict[str, Any]:
    return {name: value for name, value in short("sd").items() if name != "prompt"}


def relevance(heads: tuple[Head, ...] | None = None) -> HeadRelevance:
    heads = text_heads(model()) if heads is None else heads
    drawn = torch.rand(2, len(heads), generator=torch.Generator().manual_seed(0))
    vectors = drawn * len(heads) / drawn.sum(1, keepdim=True)
    return HeadRelevance(vectors, ("Color", "Animals"), {}, heads)


def test_vectors_by_hand() -> None:
    desired, undesired = torch.tensor([3.0, 0.0, 0.0]), torch.tensor([1.0, 1.0, 1.0])
    assert torch.equal(rescaling_vector(desired), desired)
    assert rescaling_vector(desired, undesired).tolist() == [5, -1, -1]
    assert rescaling_vector(desired, undesired, clamp=2.0).tolist() == [3, -1, -1]
    assert torch.equal(rescaling_vector(desired, desired), desired)


def test_vectors_of_other_heads_are_refused() -> None:
    with pytest.raises(ConceptError, match="of 3 and 4 heads"):
        rescaling_vector(torch.ones(3), torch.ones(4))


def test_a_random_vector_has_the_same_sum_and_norm() -> None:
    vector = rescaling_vector(relevance().vector("Color"), relevance().vector("Animals"))
    other = random_vector_like(vector, seed=3)
    torch.testing.assert_close(other.sum(), vector.sum())
    torch.testing.assert_close(other.norm(), vector.norm())
    assert not torch.allclose(other, random_vector_like(vector, seed=4))


def test_a_word_and_its_index_are_the_same() -> None:
    (index,) = model().words(PROMPT, "cat")
    factors = relevance().factors(torch.full((28,), -1.0))
    images = [
        latents_of(
            model().run_with_hooks(
                PROMPT, fwd_hooks=rescale_word(model(), word, factors), **settings()
            )
        )
        for word in ("cat", index)
    ]
    assert torch.equal(*images)
    assert not torch.allclose(images[0], latents_of(model()(PROMPT, **settings())), atol=1e-3)


def test_factors_of_one_change_nothing() -> None:
    hooks = rescale_word(model(), "cat", relevance().factors(torch.ones(28)))
    out = model().run_with_hooks(PROMPT, fwd_hooks=hooks, **settings())
    plain = latents_of(model()(PROMPT, **settings()))
    torch.testing.assert_close(latents_of(out), plain, atol=1e-4, rtol=1e-4)


def test_steering_is_rescaling_with_the_adjusted_vector() -> None:
    found = relevance()
    vector = rescaling_vector(found.vector("Color"), found.vector("Animals"), clamp=1.5)
    hooks = rescale_word(model(), "red", found.factors(vector), steps=[1])
    expected = model().run_with_hooks(PROMPT, fwd_hooks=hooks, **settings())
    steered = steer_word(
        model(),
        PROMPT,
        "red",
        found,
        desired="Color",
        undesired="Animals",
        clamp=1.5,
        steps=[1],
        **settings(),
    )
    assert torch.equal(latents_of(steered), latents_of(expected))
    assert any("ScaleTokenColumns" in hook for hook in steered.made_by.hooks)


def test_what_cannot_be_steered_says_why() -> None:
    given: dict[str, Any] = {"desired": "Color", **settings()}
    with pytest.raises(WordError, match="'dog' is not in the prompt"):
        steer_word(model(), PROMPT, "dog", relevance(), **given)
    with pytest.raises(ConceptError, match=r"'Colors' is none of .* Closest: 'Color'"):
        misspelt: dict[str, Any] = given | {"desired": "Colors"}
        steer_word(model(), PROMPT, "cat", relevance(), **misspelt)
    far = relevance((*text_heads(model()), Head(40, 3, "", "up, layer: 40, head: 3")))
    with pytest.raises(ConceptError, match=r"'up, layer: 40, head: 3' \(block 40\), and is of"):
        steer_word(model(), PROMPT, "cat", far, **given)
    with pytest.raises(RunError, match=r"they are of \[40\]"):
        rescale_word(model(), "cat", {(40, 0): 2.0})


def test_vectors_of_another_model_with_as_many_blocks_are_refused() -> None:
    """SD 1.4's heads all exist in SDXL by number, and stand at other places there."""
    heads = text_heads(model())
    moved = tuple(head._replace(name=f"elsewhere {head.name}") for head in heads)
    given: dict[str, Any] = {"desired": "Color", **settings()}
    with pytest.raises(ConceptError, match=r"'elsewhere down, layer: 0, head: 0' \(block 0\)"):
        steer_word(model(), PROMPT, "cat", relevance(moved), **given)
    with pytest.raises(ConceptError, match="has 27 heads and is of another model"):
        steer_word(model(), PROMPT, "cat", relevance(heads[:-1]), **given)


def test_steps_that_the_run_does_not_reach_are_named() -> None:
    hooks = rescale_word(model(), "cat", {(0, 0): 2.0}, steps=[90])
    with pytest.raises(HookNeverFiredError, match=r"\{\(0, 0\): 2.0\}.* never fired at"):
        model().run_with_hooks(PROMPT, fwd_hooks=hooks, **settings())
