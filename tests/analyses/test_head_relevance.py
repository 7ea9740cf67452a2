"""Head relevance: votes by hand, untouched images, merging, checkpoints, stability, MM-DiTs."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lens import HookedDiffusion, Run, Site
from diffusion_lens.analyses.head_relevance import (
    PUBLISHED_CONCEPTS,
    ConceptWords,
    Head,
    HeadRelevance,
    HeadRelevanceVotes,
    cast_votes,
    concept_shares,
    cross_attention_keys,
    head_relevance,
    text_heads,
    vectors_of,
)
from diffusion_lens.errors import ArgumentError, ConceptError, ResultError, UnsupportedModelError
from diffusion_lens.testing.tiny import tiny_denoiser
from tests.pipelines import latents_of, shared_pipe, short

CONCEPTS = {"Animals": ["dog", "cat"], "Color": ["red", "blue", "green"], "Material": ["wooden"]}
PROMPTS = ["a red cat", "two dogs in a park", "a glass table"]


def settings(family: str = "sd", **more: Any) -> dict[str, Any]:
    given = short(family, **more)
    return {name: value for name, value in given.items() if name not in ("latents", "prompt")}


def counted(prompts: Any = PROMPTS, family: str = "sd", **more: Any) -> HeadRelevance:
    given = {"concepts": CONCEPTS, "show_progress": False, **settings(family), **more}
    return head_relevance(HookedDiffusion(shared_pipe(family)), prompts, **given)


def votes_of(result: HeadRelevance) -> Tensor:
    assert result.votes is not None
    return result.votes


def made_up(votes: Tensor, **more: Any) -> HeadRelevance:
    """A result with votes with axes part, concept, head, all at one step."""
    count = votes.shape[-1]
    return HeadRelevance(
        vectors=vectors_of(votes.sum(0)),
        concepts=("A", "B"),
        words={"A": ("a",), "B": ("b",)},
        heads=tuple(Head(at // 2, at % 2, "", f"head {at}") for at in range(count)),
        votes=votes.sum(0, keepdim=True),
        parts=votes,
        prompts_in_parts=(1,) * len(votes),
        prompts=len(votes),
        **more,
    )


# -- the mathematics --------------------------------------------------------------------------


def test_shares_by_hand() -> None:
    queries = torch.tensor([[[[1.0]], [[0.0]]]], dtype=torch.float64)  # 2 tokens, 1 head
    keys = torch.tensor([[[0.0], [2.0], [1.0], [1.0]]], dtype=torch.float64).log()
    keys[0, 0] = 5.0  # the start token
    shares = concept_shares(queries, keys, torch.tensor([0, 0, 1, 1]), concepts=2, start_rows=1)
    e = torch.tensor(5.0, dtype=torch.float64).exp()
    first = torch.stack([2 / (e + 4), 1 / (e + 4)])  # the second concept is a mean over two rows
    second = torch.full((2,), 0.25, dtype=torch.float64)  # the zero query sees all four rows alike
    torch.testing.assert_close(shares[0, 0], (first + second) / 2)


def test_shares_without_a_start_token_leave_it_out_of_the_softmax() -> None:
    queries, keys = torch.randn(2, 5, 3, 4), torch.randn(3, 6, 4)
    owners = torch.tensor([0, 0, 1, 2, 2])
    found = concept_shares(queries, keys[:, 1:], owners, concepts=3)
    weights = torch.einsum("bphd,hrd->bhpr", queries, keys[:, 1:]).softmax(-1).mean(2)
    expected = [weights[..., 0:2].mean(-1), weights[..., 2], weights[..., 3:5].mean(-1)]
    torch.testing.assert_close(found, torch.stack(expected, -1))


def test_votes_by_hand() -> None:
    shares = torch.tensor([[[0.5, 0.4, 0.1], [0.2, 0.2, 0.1]]])
    assert cast_votes(shares).tolist() == [[[1, 0, 0], [1, 0, 0]]]
    assert torch.equal(cast_votes(shares, "strength"), shares)
    margins = torch.tensor([[[0.2, 0, 0], [0.0, 0, 0]]])
    torch.testing.assert_close(cast_votes(shares, "margin"), margins)


def test_an_unknown_vote_names_the_closest() -> None:
    with pytest.raises(ConceptError, match=r"'margins' is none of .* Closest: 'margin'"):
        cast_votes(torch.rand(1, 1, 3), "margins")
    with pytest.raises(ConceptError, match="Closest: 'argmax'"):
        counted(vote="argmx")


def test_vectors_sum_to_the_number_of_heads_or_to_nothing() -> None:
    vectors = vectors_of(torch.tensor([[3, 1, 0, 0], [0, 0, 0, 0]]))
    assert vectors.tolist() == [[3, 1, 0, 0], [0, 0, 0, 0]]
    assert vectors_of(torch.tensor([2, 2, 2, 2])).tolist() == [1, 1, 1, 1]


# -- running ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd", "flux", "sd3"])
def test_every_head_votes_once_a_step_and_the_image_is_the_same(family: str) -> None:
    model = HookedDiffusion(shared_pipe(family))
    given = settings(family)
    images = []
    found = counted(
        PROMPTS[:2],
        family,
        callback_on_step_end=lambda _p, _s, _t, kept: images.append(kept["latents"]) or {},
    )
    total = votes_of(found).sum(1)
    assert total.eq(2).all()  # two prompts, at every step, in every head
    assert found.prompts == 2
    assert len(found.steps) == total.shape[0]
    plain = model(PROMPTS[1], seed=1, **given)
    assert torch.equal(images[-1], latents_of(plain))


def test_votes_of_an_mmdit_are_those_of_its_queries_and_concept_keys() -> None:
    single = {name: [words[0]] for name, words in CONCEPTS.items()}
    found = counted(PROMPTS[0], "flux", concepts=single, vote="strength")
    model = HookedDiffusion(shared_pipe("flux"))
    length = settings("flux").get("max_sequence_length")
    words = ConceptWords.encode(model, single, max_sequence_length=length)
    rows, owners = words.draw(torch.Generator(), include_start_token=False)
    names = ("attn.img.hook_q", "attn.concept.hook_k")
    blocks = list(dict.fromkeys(head.block for head in found.heads))
    with model.concept_streams(words.embeddings[None, rows], blocks=blocks) as streams:
        sites = [f"blocks.{block}.{name}" for block in streams.blocks for name in names]
        _, cache = model.run_with_cache(
            PROMPTS[0], names_filter=sites, show_progress=False, **settings("flux")
        )
    at = {head.block: index for index, head in reversed(list(enumerate(found.heads)))}
    assert set(at) == set(streams.blocks)
    for block, start in at.items():
        for step in found.steps:
            queries, keys = (cache.at(step=step)[f"blocks.{block}.{name}"] for name in names)
            scores = torch.einsum("bphd,brhd->bhpr", queries, keys) * keys.shape[-1] ** -0.5
            weights = scores.softmax(-1).mean((0, 2))
            expected = torch.stack(
                [
                    weights[:, [at for at, owner in enumerate(owners) if owner == concept]].mean(-1)
                    for concept in range(3)
                ]
            )
            heads = slice(start, start + expected.shape[1])
            torch.testing.assert_close(votes_of(found)[step, :, heads].float(), expected)


@pytest.mark.slow
def test_drawn_words_depend_on_the_seed_alone() -> None:
    first, again = counted(), counted()
    assert torch.equal(votes_of(first), votes_of(again))
    other = counted(Run(PROMPTS, seed=(0, 1, 2)), batch_size=3)
    assert not torch.equal(votes_of(first), votes_of(other))  # the batch shares its words


def test_the_start_token_takes_part_or_not() -> None:
    with_it = counted(PROMPTS[0], vote="strength")
    without = counted(PROMPTS[0], vote="strength", include_start_token=False)
    assert votes_of(with_it).sum() < votes_of(without).sum()


@pytest.mark.slow
def test_steps_can_be_chosen_or_joined() -> None:
    every = counted(steps=[1])
    assert every.steps == (1,)
    joined = counted(per_step=False)
    assert torch.equal(votes_of(joined)[0], votes_of(counted()).sum(0))
    with pytest.raises(ResultError, match="per_step=True"):
        joined.per_step()


@pytest.mark.slow
def test_nothing_that_is_kept_grows_with_steps() -> None:
    denoiser, inputs = tiny_denoiser("sd1")
    model = HookedDiffusion(denoiser)
    embeddings = torch.randn(4, inputs["encoder_hidden_states"].shape[-1])
    words = ConceptWords({"A": ("a",), "B": ("b", "c")}, embeddings, (((1,),), ((2,), (3,))))
    keys = cross_attention_keys(model, embeddings)
    votes = HeadRelevanceVotes(words, text_heads(model), keys, per_step=False)
    site = Site("blocks.*.cross_attn.img.hook_q", branch="cond")
    held = {}
    with torch.no_grad(), model.hooks([(site, votes)], branches=("uncond", "cond")):
        for step in range(1, 51):
            model.wiring.tracker.run.step = step
            denoiser(**inputs)
            if step in (5, 50):
                held[step] = live_bytes()
    assert held[5] == held[50]
    votes.end()
    assert votes.totals[-1].sum() == 50 * len(votes.heads)


def live_bytes() -> int:
    """Bytes of every tensor that Python can reach."""
    gc.collect()
    # By type: isinstance would ask lazy objects of other packages for their class.
    tensors = [found for found in gc.get_objects() if issubclass(type(found), Tensor)]
    storages = [found.untyped_storage() for found in tensors]
    return sum({one.data_ptr(): one.nbytes() for one in storages}.values())


# -- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("concepts", "message"),
    [
        (["red", "blue"], "a mapping from each concept to its words"),
        ({"Color": ["red"]}, "two concepts or more"),
        ({"Color": ["red"], "Shape": []}, r"'Shape' has the words \[\]"),
        ({"Color": ["red", "red"], "Shape": ["round"]}, "'Color' has a word twice"),
    ],
    ids=["list", "single", "empty", "repeated"],
)
def test_bad_concepts_are_refused(concepts: Any, message: str) -> None:
    with pytest.raises(ConceptError, match=message):
        counted(concepts=concepts)


def test_what_cannot_be_counted_says_why() -> None:
    bare = HookedDiffusion(tiny_denoiser("sd1")[0])
    with pytest.raises(ConceptError, match="bare denoiser has no text encoder"):
        head_relevance(bare, PROMPTS, concepts=CONCEPTS)
    with pytest.raises(ConceptError, match="needs prompts as words"):
        counted(Run(None, prompt_embeds=torch.zeros(1, 77, 32)))
    with pytest.raises(ConceptError, match="batch_size=0: give 1 or more"):
        counted(batch_size=0)
    with pytest.raises(ConceptError, match=r"latents= has 1 row for 3 prompts"):
        counted(latents=torch.zeros(1, 4, 8, 8))


def test_an_unknown_concept_names_the_closest() -> None:
    with pytest.raises(ConceptError, match=r"'Colour' is none of the 3 concepts. Closest: 'Color'"):
        made_up3().vector("Colour")


def made_up3() -> HeadRelevance:
    result = made_up(torch.ones(2, 2, 4))
    return HeadRelevance(torch.ones(3, 4), ("Color", "Shape", "Size"), {}, result.heads, votes=None)


# -- results ----------------------------------------------------------------------------------

VOTES = torch.tensor(
    [
        [[5, 0, 3, 2], [0, 5, 2, 3]],
        [[5, 1, 3, 2], [0, 4, 2, 3]],
        [[4, 0, 3, 3], [1, 5, 2, 2]],
    ]
)


def test_heads_are_ranked_and_chosen() -> None:
    result = made_up(VOTES)
    assert result.order("A") == (0, 2, 3, 1)
    assert result.order("A", "least") == (1, 3, 2, 0)
    assert sorted(result.order("A", "random")) == [0, 1, 2, 3]
    assert result.order("A", "random", seed=1) != result.order("A", "random", seed=2)
    assert result.top("A", 2) == result.top("A", 0.5) == ((0, 0), (1, 0))
    assert result.top("A", 0.3) == result.top("A", 2)
    site = Site("blocks.*.cross_attn.hook_pattern", heads=result.top("A", 2))
    assert site.heads == ((0, 0), (1, 0))
    with pytest.raises(ResultError, match="there are 4 heads; give a number from 1 to 4"):
        result.top("A", 5)
    with pytest.raises(ArgumentError, match=r"^HeadRelevance\.top\(k=…\) .*, got nan"):
        result.top("A", float("nan"))
    with pytest.raises(ResultError, match="2 values for 4 heads; give one for each"):
        result.factors(torch.ones(2))
    with pytest.raises(ResultError, match="'best' is none of"):
        result.order("A", "best")


def test_ties_keep_the_order_of_the_heads() -> None:
    result = made_up(torch.ones(2, 2, 4))
    assert result.order("A") == result.order("A", "least") == (0, 1, 2, 3)


def test_vote_shares_add_up_to_one() -> None:
    result = made_up(VOTES)
    assert result.vote_share == pytest.approx({"A": 31 / 60, "B": 29 / 60})
    with pytest.raises(ResultError, match="give load_published the ranking too"):
        made_up3().vote_share  # noqa: B018


def test_clamping_bounds_vectors_and_leaves_votes() -> None:
    result = made_up(VOTES)
    clamped = result.clamp(1.5)
    assert clamped.vectors.max() == 1.5
    assert torch.equal(clamped.vectors, result.vectors.clamp(max=1.5))
    assert clamped.made_by["clamp"] == 1.5
    with pytest.raises(ResultError, match="before they are clamped"):
        result.merge(clamped)


def test_merging_adds_votes_and_refuses_what_differs() -> None:
    result, other = made_up(VOTES), made_up(VOTES.flip(0) + 1)
    merged = result.merge(other, other)
    assert torch.equal(votes_of(merged), votes_of(result) + 2 * votes_of(other))
    assert torch.equal(merged.vectors, vectors_of(votes_of(merged).sum(0)))
    assert merged.prompts == 9
    assert merged.prompts_in_parts == (3, 3, 3)
    unequal = result.merge(made_up(VOTES[:1]))
    assert unequal.prompts_in_parts == (2, 1, 1)
    assert unequal.parts is not None
    assert torch.equal(unequal.parts, torch.stack([2 * VOTES[0], VOTES[1], VOTES[2]]))
    with pytest.raises(ResultError, match="different vote cannot be merged"):
        result.merge(made_up(VOTES, vote="margin"))


def test_merging_keeps_what_was_run_and_refuses_another_softmax_or_model() -> None:
    one, two, three = (made_up(VOTES, made_by={"model": "m", "seed": at}) for at in range(3))
    assert one.merge(two).merge(three).made_by == one.merge(two, three).made_by
    for name, value in (("model", "n"), ("include_start_token", False)):
        about = {"model": "m", "include_start_token": True}
        mine, other = (made_up(VOTES, made_by=one) for one in (about, about | {name: value}))
        with pytest.raises(ResultError, match=f"different {name} cannot be merged"):
            mine.merge(mine).merge(other)


def test_steps_are_compared(tmp_path: Path) -> None:
    found = counted()
    similarity = found.step_similarity("Color")
    steps = found.per_step()
    expected = torch.cosine_similarity(steps[0, 1], steps[1, 1], dim=0)
    torch.testing.assert_close(similarity[0, 1], expected)
    torch.testing.assert_close(similarity.diagonal(), torch.ones(len(found.steps)))
    assert found.step_similarity().shape == similarity.shape
    assert steps.sum(-1)[steps.sum(-1) > 0].allclose(torch.tensor(float(len(found.heads))))


def test_intervals_narrow_with_agreement() -> None:
    low, high = made_up(VOTES).interval("A")
    vector = made_up(VOTES).vector("A")
    assert (low <= vector).all()
    assert (vector <= high).all()
    assert (high > low).any()
    low, high = made_up(VOTES[:1].expand(5, -1, -1)).interval("A")
    torch.testing.assert_close(low, high)
    torch.testing.assert_close(low, vectors_of(VOTES[0])[0])


def test_halves_are_compared() -> None:
    same = made_up(VOTES[:1].expand(4, -1, -1)).split_half(draws=3)
    torch.testing.assert_close(same, torch.ones(3, 2))
    apart = torch.zeros(2, 2, 4, dtype=torch.long)
    apart[0, 0, 0] = apart[1, 0, 1] = apart[0, 1, 2] = 1
    halves = made_up(apart).split_half(draws=3)
    assert halves[:, 0].eq(0).all()
    assert halves[:, 1].isnan().all()  # no vote in one of the halves
    with pytest.raises(ResultError, match="two prompts or more"):
        made_up(VOTES[:1]).split_half()


def test_a_saved_result_comes_back(tmp_path: Path) -> None:
    found = counted(PROMPTS[0])
    loaded = HeadRelevance.load(found.save(tmp_path / "kept"))
    assert loaded.heads == found.heads
    assert loaded.heads[0].name == found.heads[0].name == "down, layer: 0, head: 0"
    assert loaded.words == found.words
    for name in ("votes", "parts", "vectors"):
        assert torch.equal(getattr(loaded, name), getattr(found, name))
    assert loaded.made_by["prompts"] == 1


def test_results_draw_themselves() -> None:
    assert made_up(VOTES).plot("A") is not None
    assert made_up(VOTES).plot() is not None


def test_the_published_table_is_whole() -> None:
    assert len(PUBLISHED_CONCEPTS) == 34
    assert {len(set(words)) for words in PUBLISHED_CONCEPTS.values()} == {10}
    names = list(PUBLISHED_CONCEPTS)
    assert (names[0], names[17], names[33]) == ("Animals", "Color", "Geometric Patterns")


def test_a_model_without_text_heads_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = HookedDiffusion(shared_pipe("sd"))
    monkeypatch.setattr(type(model), "points", {})
    with pytest.raises(
        UnsupportedModelError,
        match=r"no cross-attention to text and no concept streams.*head_patterns",
    ):
        text_heads(model)
