"""Alignments by hand, edits that change nothing, the source's row, and clear errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffusion_lens import HookContext, HookedDiffusion, Run
from diffusion_lens.analyses import LocalBlend, prompt_to_prompt
from diffusion_lens.analyses.edited_images import EditedImages, inference_steps
from diffusion_lens.analyses.prompt_to_prompt.alignment import (
    identity,
    needleman_wunsch,
    refinement,
    replacement,
    word_tokens,
)
from diffusion_lens.analyses.prompt_to_prompt.controller import EditCrossAttention, TextEdit
from diffusion_lens.analyses.prompt_to_prompt.schedule import cross_steps, self_steps
from diffusion_lens.analyses.prompt_to_prompt.word_maps import blend_mask
from diffusion_lens.analyses.prompt_to_prompt.words import align
from diffusion_lens.errors import ArgumentError, ConceptError, ResultError, RunError, WordError
from tests.analyses.test_concept_steering import relevance
from tests.pipelines import fresh_pipe, latents_of, shared_pipe, short, traces

SOURCE = "a red cat on the glass table"
TARGET = "a blue cat on the glass table"
LONGER = "a photo of a red cat on the glass table"


def model(name: str = "sd") -> HookedDiffusion:
    return HookedDiffusion(shared_pipe(name))


def settings(name: str = "sd", **more: Any) -> dict[str, Any]:
    given = {key: value for key, value in short(name).items() if key != "prompt"}
    return {**given, **more}


# -- alignment by hand ------------------------------------------------------------------------


def test_a_word_of_one_token_replaced_by_one_of_two() -> None:
    # start, a, cat, sat, end  ->  start, a, li, on, sat, end
    found = replacement([(2,)], [(2, 3)], 6)
    expected = torch.zeros(6, 6)
    expected[0, 0] = expected[1, 1] = 1
    expected[2, 2] = expected[2, 3] = 0.5
    expected[4, 4] = expected[5, 5] = 1  # by position, as the released code does it
    assert torch.equal(found.mapper, expected)
    assert not found.own.any()
    assert found.edited == (2, 3)
    assert found.source_edited == (2,)


def test_two_replaced_words_with_tokens_between() -> None:
    # start, x y, b, c, end  ->  start, z, b, d, end: between the two, tokens go in sequence
    found = replacement([(1, 2), (4,)], [(1,), (3,)], 6)
    expected = torch.zeros(6, 6)
    expected[0, 0] = 1
    expected[1, 1] = expected[2, 1] = 1  # both of the source's tokens, each with the whole share
    expected[3, 2] = 1
    expected[4, 3] = 1
    expected[4, 4] = 1  # and the last column empty: the released code runs out of source tokens
    assert torch.equal(found.mapper, expected)


def test_an_added_word_is_left_to_the_target() -> None:
    # start, a, cat, end (0 5 7 1)  ->  start, a, big, cat, end
    found = refinement([0, 5, 7, 1], [0, 5, 9, 7, 1], 7)
    expected = torch.zeros(7, 7)
    for source, target in [(0, 0), (1, 1), (2, 3), (3, 4), (5, 5), (6, 6)]:
        expected[source, target] = 1
    assert torch.equal(found.mapper, expected)
    assert found.own.tolist() == [0, 0, 1, 0, 0, 0, 0]
    assert found.edited == (2,)
    assert found.source_edited == ()


def test_ties_of_the_alignment_go_to_the_left() -> None:
    assert needleman_wunsch([1, 2], [1, 3, 2]) == [0, None, 1]
    assert needleman_wunsch([1, 2], [2, 1]) == [1, None]  # left before up
    assert needleman_wunsch([4], [4, 4]) == [0, None]  # from the end, the last 4 is left alone
    assert needleman_wunsch([1, 2], [3, 4]) == [None, None]  # never a mismatch: gaps are free
    assert needleman_wunsch([], [3]) == [None]


def test_words_by_their_characters() -> None:
    spans = [(0, 0), (0, 3), (3, 4), (4, 8), (0, 0)]
    assert word_tokens("cat, dogs", spans) == [(1, 2), (3,)]
    with pytest.raises(WordError, match=r"'birds' of .* lies behind the last token"):
        word_tokens("cat, dogs birds", spans)


@pytest.mark.parametrize("name", ["sd", "sd3", "flux"])
@pytest.mark.parametrize("edit", ["replace", "refine"])
def test_a_prompt_is_aligned_with_itself_token_by_token(name: str, edit: str) -> None:
    found = align(model(name), Run(SOURCE), SOURCE, edit=edit, length=120)
    assert torch.equal(found.mapper, torch.eye(120))
    assert found.edited == ()


def test_both_tokenizers_of_a_joined_stream_are_aligned() -> None:
    found = align(model("sd3"), Run(SOURCE), TARGET, edit="replace", length=100)
    assert {token for token in found.edited if token < 77} == set(model("sd").words(TARGET, "blue"))
    assert found.edited == model("sd3").words(TARGET, "blue")
    assert found.source_edited == model("sd3").words(SOURCE, "red")


# -- schedules --------------------------------------------------------------------------------


def test_ranges_of_steps_by_hand() -> None:
    alpha = cross_steps(
        (0.25, 0.75), {"blue": 0.5, "cat": (0.5, 1)}, [{"blue": (1,)}, {"cat": (0, 2)}], steps=3,
        length=3,
    )  # fmt: skip
    assert alpha[:, 0].T.tolist() == [[0, 1, 1, 0], [1, 1, 0, 0], [0, 1, 1, 0]]
    assert alpha[:, 1].T.tolist() == [[0, 0, 1, 1], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert self_steps(0.4, steps=4) == range(1)
    assert self_steps((0.5, 1), steps=4) == range(2, 4)
    assert cross_steps(1, {}, [{}], steps=2, length=1).sum() == 3  # an int is a share, too


@pytest.mark.parametrize(
    ("scheduler", "more"),
    [
        ("HeunDiscreteScheduler", {}),
        ("PNDMScheduler", {}),
        ("EulerDiscreteScheduler", {"strength": 0.5}),
        ("HeunDiscreteScheduler", {"strength": 0.5}),
    ],
)
def test_shares_are_of_the_steps_that_a_run_makes(scheduler: str, more: dict[str, Any]) -> None:
    pipe = fresh_pipe("sd")
    if more:
        more = {**more, "image": Image.new("RGB", (64, 64))}
        pipe = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components)
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    hooked = HookedDiffusion(pipe)
    run = Run(SOURCE, num_inference_steps=3, output_type="latent", **more)
    repeated = scheduler == "PNDMScheduler"  # a step more than the published code's shares are of
    assert inference_steps(hooked, run) == hooked(run).made_by.steps - repeated
    if not repeated:
        edited = prompt_to_prompt(hooked, run, SOURCE, cross_replace=1, self_replace=1)
        assert torch.equal(edited.latents[0], edited.latents[1])


def test_a_plan_is_brought_beside_patterns_once() -> None:
    asked: list[int] = []

    def plan(length: int) -> TextEdit:
        asked.append(length)
        every, rest = torch.ones(1, 1, length), torch.ones(1, length)
        return TextEdit([identity(length)], every, rest, 0 * rest)

    hook = EditCrossAttention("replace", plan)
    point = HookContext("pattern", 0, None, ("batch", "head", "query", "key"), 0, "cond")
    for dtype in (torch.float32, torch.float32, torch.bfloat16, torch.bfloat16):
        pattern = torch.rand(2, 4, 5, 3, dtype=dtype)
        edited = hook(pattern, point)
        assert edited is not None
        assert torch.equal(edited[1], pattern[0])
    assert asked == [3, 3]


@pytest.mark.parametrize("wrong", [(0.5, 0.2), (0.1, 0.2, 0.3)])
def test_a_range_that_is_none_is_refused(wrong: Any) -> None:
    with pytest.raises(RunError, match=r"cross_replace=.* is no range of steps"):
        prompt_to_prompt(model(), SOURCE, TARGET, cross_replace=wrong, **settings())


@pytest.mark.parametrize("wrong", [1.2, -0.1, (0.5, 1.2), float("nan")])
def test_a_share_that_is_none_is_refused(wrong: Any) -> None:
    message = (
        r"^prompt_to_prompt\(cross_replace=…\) takes float from 0 to 1 .*, got .* For which share"
    )
    with pytest.raises(ArgumentError, match=message):
        prompt_to_prompt(model(), SOURCE, TARGET, cross_replace=wrong, **settings())


# -- identities -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd", "sd3", "flux"])
@pytest.mark.parametrize("edit", ["replace", "refine", "reweight"])
def test_an_edit_of_a_prompt_by_itself_changes_no_bit(name: str, edit: str) -> None:
    result = prompt_to_prompt(
        model(name), SOURCE, SOURCE, edit=edit, self_replace=1, cross_replace=1,
        reweight={"red": 1.0}, self_max_tokens=4096, **settings(name),
    )  # fmt: skip
    plain = latents_of(model(name)([SOURCE, SOURCE], **_two_rows(settings(name))))
    assert torch.equal(result.latents, plain)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
def test_the_source_row_is_that_of_the_source_without_an_edit(name: str) -> None:
    """In a batch of the same size: torch's kernels round differently for a batch of one."""
    given = settings(name)
    result = prompt_to_prompt(
        model(name), SOURCE, TARGET, self_replace=1, self_max_tokens=4096, **given
    )
    plain = latents_of(model(name)([SOURCE, SOURCE], **_two_rows(given)))
    assert torch.equal(result.latents[0], plain[0])
    assert not torch.allclose(result.latents[1], result.latents[0], atol=1e-3)
    alone = latents_of(model(name)(SOURCE, **given))
    torch.testing.assert_close(result.latents[:1], alone, atol=1e-4, rtol=1e-4)


def _two_rows(given: dict[str, Any]) -> dict[str, Any]:
    latents: Tensor = given["latents"]
    return {**given, "latents": latents.expand(2, *latents.shape[1:]).clone()}


def test_no_replacement_is_the_plain_target() -> None:
    result = prompt_to_prompt(
        model(), SOURCE, TARGET, cross_replace=0, self_replace=0, **settings()
    )
    plain = latents_of(model()([SOURCE, TARGET], **_two_rows(settings())))
    assert torch.equal(result.latents, plain)


def test_a_factor_of_one_is_no_factor_and_two_is_one() -> None:
    latents = [
        prompt_to_prompt(
            model(), SOURCE, SOURCE, edit="reweight", reweight={"red": factor}, **settings()
        ).latents
        for factor in (1.0, 2.0)
    ]
    assert torch.equal(latents[0][0], latents[0][1])
    assert not torch.allclose(latents[1][0], latents[1][1], atol=1e-3)


def test_word_ranges_keep_a_word_to_the_target() -> None:
    """Where no column is replaced but the word's own range is empty, too, nothing is edited."""
    given = {"self_replace": 0, **settings()}
    never = prompt_to_prompt(
        model(), SOURCE, TARGET, cross_replace=0, word_ranges={"blue": 0}, **given
    )
    early = prompt_to_prompt(
        model(), SOURCE, TARGET, cross_replace=0, word_ranges={"blue": 0.5}, **given
    )
    plain = prompt_to_prompt(model(), SOURCE, TARGET, cross_replace=0, **given)
    assert torch.equal(never.latents, plain.latents)
    assert not torch.allclose(early.latents[1], plain.latents[1], atol=1e-4)


def test_vectors_of_zero_take_the_word_away_and_ones_keep_its_own() -> None:
    found = relevance()
    given = {"concept": "Color", "self_replace": 0, **settings()}
    edited = prompt_to_prompt(model(), SOURCE, TARGET, relevance=found, **given)
    clamped = prompt_to_prompt(model(), SOURCE, TARGET, relevance=found, clamp=0.5, **given)
    assert not torch.allclose(edited.latents[1], clamped.latents[1], atol=1e-4)
    assert "2412.02237" in edited.citation


# -- local blend and maps ---------------------------------------------------------------------


def test_a_blend_mask_by_hand() -> None:
    maps = torch.zeros(2, 4, 4)
    maps[0, 0, 0], maps[1, 3, 3], maps[1, 0, 3] = 1.0, 2.0, 0.5
    (mask,) = blend_mask(maps, (4, 4), threshold=0.3)
    expected = torch.tensor(
        [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]], dtype=torch.bool
    )
    assert torch.equal(mask, expected)
    assert blend_mask(maps, (8, 8), threshold=0.2)[0, 0, 7]


def test_outside_the_blended_words_targets_are_the_source() -> None:
    result = prompt_to_prompt(
        model(), SOURCE, TARGET, local_blend=LocalBlend(("red", "blue"), threshold=0.9),
        keep_maps=True, **settings(),
    )  # fmt: skip
    same = (result.latents[0] == result.latents[1]).all(0)
    assert same.any()
    assert not same.all()
    nowhere = prompt_to_prompt(
        model(), SOURCE, TARGET, local_blend=LocalBlend(("red", "blue"), threshold=1), **settings()
    )
    assert torch.equal(nowhere.latents[0], nowhere.latents[1])


def test_a_blend_keeps_the_callers_own_callback() -> None:
    seen: list[int] = []

    def callback(_pipe: Any, step: int, _time: Any, _tensors: dict) -> dict:
        seen.append(step)
        return {}

    prompt_to_prompt(
        model(), SOURCE, TARGET, local_blend=LocalBlend(("red", "blue")),
        callback_on_step_end=callback, **settings(),
    )  # fmt: skip
    assert seen == [0, 1, 2]


def test_maps_are_those_of_the_attention_of_each_rows_words() -> None:
    """With nothing edited, they are the mean over heads, blocks and steps that a cache gives."""
    given = {"cross_replace": 0, "self_replace": 0, "keep_maps": True}
    result = prompt_to_prompt(model(), SOURCE, TARGET, **given, **settings())
    assert result.maps is not None
    sites = [site for site in model().text_pattern_sites() if _level(str(site.name)) == 1]
    _, cache = model().run_with_cache(
        [SOURCE, TARGET], names_filter=sites, show_progress=False, **_two_rows(settings())
    )
    (token,) = model().words(TARGET, "blue")
    stacked = torch.stack([cache[str(site.name)][:, 1, ..., token] for site in sites])
    expected = stacked.mean((0, 1, 2)).unflatten(-1, (8, 8))
    torch.testing.assert_close(result.maps[1], expected)


def _level(name: str) -> int:
    return model().points[name].level


# -- the result, errors -----------------------------------------------------------------------


def test_a_result_comes_back_and_is_drawn(tmp_path: Path) -> None:
    given = {**settings(), "output_type": "pil"}
    result = prompt_to_prompt(model(), Run(SOURCE, seed=3), TARGET, keep_maps=True, **given)
    assert len(result.target_images) == 1
    assert result.made_by["edit"] == "replace"
    result.plot()
    back = EditedImages.load(result.save(tmp_path))
    assert torch.equal(back.latents, result.latents)
    assert back.targets == (TARGET,)
    assert back.image.size == result.image.size
    assert "prompt_to_prompt" in repr(back)
    latent = prompt_to_prompt(model(), SOURCE, TARGET, **settings())
    with pytest.raises(ResultError, match="has no images; decode its latents"):
        latent.plot()


def test_what_cannot_be_edited_says_why() -> None:
    def edit(*args: Any, **more: Any) -> EditedImages:
        return prompt_to_prompt(model(), *args, **{**settings(), **more})

    before = traces(shared_pipe("sd"))
    with pytest.raises(
        WordError, match=r"first differ at word 1: 'red' and 'photo'\. Give edit='r"
    ):
        edit(SOURCE, LONGER)
    with pytest.raises(WordError, match="first differ at word 7: nothing and 'top'"):
        edit(SOURCE, f"{SOURCE} top")
    with pytest.raises(RunError, match=r"edit='refines' is none of .* Closest: 'refine'"):
        edit(SOURCE, TARGET, edit="refines")
    with pytest.raises(RunError, match="edit='reweight' keeps the prompt"):
        edit(SOURCE, TARGET, edit="reweight")
    with pytest.raises(RunError, match="needs reweight=, a factor by word"):
        edit(SOURCE, SOURCE, edit="reweight")
    with pytest.raises(RunError, match=r"^prompt_to_prompt has cross_replace= itself\. Stable"):
        edit(SOURCE, TARGET, cross_replac=0.3)
    with pytest.raises(RunError, match="one source prompt, got"):
        edit([SOURCE, SOURCE], TARGET)
    with pytest.raises(RunError, match="one source prompt, the run has"):
        edit(Run([SOURCE, SOURCE]), TARGET)
    with pytest.raises(RunError, match="share one noise"):
        edit(SOURCE, TARGET, seed=[1, 2])
    with pytest.raises(RunError, match="share one noise, of which a generator gives every row"):
        edit(SOURCE, TARGET, generator=torch.Generator())
    with pytest.raises(RunError, match="latents= has 3 rows for 2 prompts"):
        edit(SOURCE, TARGET, latents=torch.zeros(3, 4, 16, 16))
    with pytest.raises(RunError, match=r"prompt_3= gives .* a second text"):
        texts = ["a red cat", "a big blue cat"]
        prompt_to_prompt(model("sd3"), SOURCE, TARGET, prompt_3=texts, **settings("sd3"))
    with pytest.raises(RunError, match="one image of each prompt, 2 were asked for"):
        edit(SOURCE, TARGET, num_images_per_prompt=2)
    with pytest.raises(RunError, match="needs a target prompt"):
        edit(SOURCE, [])
    with pytest.raises(WordError, match="word_ranges: 'green' is not in the prompt"):
        edit(SOURCE, TARGET, word_ranges={"green": 0.5})
    with pytest.raises(WordError, match="reweight: 'green' is not in the prompt"):
        edit(SOURCE, TARGET, reweight={"green": 0.5})
    with pytest.raises(ConceptError, match="go together"):
        edit(SOURCE, TARGET, concept="Color")
    with pytest.raises(ConceptError, match=r"'Colors' is none of .* Closest: 'Color'"):
        edit(SOURCE, TARGET, relevance=relevance(), concept="Colors")
    with pytest.raises(ConceptError, match="are 2 for 1 targets"):
        edit(SOURCE, TARGET, relevance=relevance(), concept=["Color", "Color"])
    with pytest.raises(RunError, match="a target changes none"):
        edit(SOURCE, SOURCE, relevance=relevance(), concept="Color")
    with pytest.raises(RunError, match="needs words for the source and for each target, 2 entries"):
        edit(SOURCE, TARGET, local_blend=LocalBlend("red"))
    with pytest.raises(WordError, match="'green' is not in the prompt"):
        edit(SOURCE, TARGET, local_blend=LocalBlend(("red", "green")))
    with pytest.raises(RunError, match=r"at most self_max_tokens=3 .* the smallest has 64"):
        edit(SOURCE, TARGET, self_max_tokens=3, self_replace=1)
    assert traces(shared_pipe("sd")) == before
