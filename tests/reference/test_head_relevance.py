"""Head relevance counts what the authors' code counts (data in tests/golden)."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from diffusion_lens import HookedDiffusion
from diffusion_lens.analyses.head_relevance import head_relevance, text_heads
from diffusion_lens.analyses.head_relevance.result import HeadRelevance
from tests.pipelines import FOLDER, fresh_pipe, golden, shared_pipe

EVERY = slice(None)


def model_of(family: str) -> HookedDiffusion:
    if family == "sd":
        return HookedDiffusion(shared_pipe("sd"))
    from diffusers import PNDMScheduler

    pipe = fresh_pipe(family)
    pipe.scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
    )
    return HookedDiffusion(pipe)


def counted(family: str, prompts: slice = EVERY, **more: Any) -> HeadRelevance:
    given = golden(family)
    case = given.cases["hrv"]
    return head_relevance(
        model_of(family),
        case["prompts"][prompts],
        concepts={
            name: [word]
            for name, word in zip(case["concept_names"], case["concept_words"], strict=True)
        },
        latents=given.inputs["hrv.latents"][prompts],
        num_inference_steps=case["num_inference_steps"],
        guidance_scale=case["guidance_scale"],
        show_progress=False,
        **more,
    )


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_the_order_of_heads_and_their_modules_agree(family: str) -> None:
    listed = json.loads((FOLDER / family / "inputs.json").read_text(encoding="utf-8"))["heads"]
    found = text_heads(model_of(family))
    assert [(head.module, head.head) for head in found] == [
        (head["module"], head["head"]) for head in listed
    ]
    assert [head.name for head in found] == [
        f"{head['place']}, layer: {head['layer']}, head: {head['head']}" for head in listed
    ]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_votes_agree_exactly_and_vectors_within_tolerance(family: str) -> None:
    expected = golden(family).expected
    found = counted(family)
    assert found.votes is not None
    counts = expected["hrv.counts"].long()  # prompt call head concept
    assert torch.equal(found.votes, counts.sum(0).mT)
    assert found.parts is not None
    assert torch.equal(found.parts, counts.sum(1).mT)
    torch.testing.assert_close(found.vectors, expected["hrv.vectors"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        found.per_step(), expected["hrv.vectors_per_call"], atol=1e-5, rtol=1e-5
    )
    share = found.votes.sum(0) / found.votes.sum((0, 1))
    torch.testing.assert_close(share, expected["hrv.fraction"], atol=1e-5, rtol=1e-5)


def test_a_strength_vote_gives_the_published_scores() -> None:
    scores = golden("sd").expected["hrv.scores"]
    found = counted("sd", vote="strength")
    assert found.votes is not None
    torch.testing.assert_close(found.votes.float(), scores.sum(0).mT, atol=4e-5, rtol=1e-3)


@pytest.mark.slow
def test_one_batch_counts_as_two_runs_merged() -> None:
    together = counted("sd", batch_size=2)
    apart = counted("sd", slice(0, 1)).merge(counted("sd", slice(1, 2)))
    assert together.votes is not None
    assert apart.votes is not None
    assert torch.equal(together.votes, apart.votes)
    assert torch.equal(together.vectors, apart.vectors)
    assert apart.prompts == together.prompts == 2
