"""Ordered weakening: which columns, which heads, curves and areas by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion_lens import HookedDiffusion
from diffusion_lens.analyses.head_relevance import HeadRelevance, text_heads
from diffusion_lens.analyses.ordered_weakening import (
    WeakeningCurves,
    ordered_weakening,
    published_counts,
    weaken_words,
    weakening_concepts,
    weakening_prompts,
)
from diffusion_lens.errors import ConceptError, ResultError, RunError, WordError
from tests.pipelines import latents_of, shared_pipe, short

PROMPTS = ["a red cat on the glass table", "two dogs"]


def model() -> HookedDiffusion:
    return HookedDiffusion(shared_pipe("sd"))


def settings(**more: Any) -> dict[str, Any]:
    given = short("sd", **more)
    return {name: value for name, value in given.items() if name not in ("prompt", "latents")}


def relevance() -> HeadRelevance:
    heads = text_heads(model())
    vector = torch.arange(len(heads), 0.0, -1.0)
    vectors = torch.stack([vector, vector.flip(0)]) * len(heads) / vector.sum()
    return HeadRelevance(vectors, ("Color", "Shape"), {}, heads)


def brightness(images: list[Any], texts: list[str]) -> list[float]:
    assert len(images) == len(texts)
    return [float(np.asarray(image).mean()) for image in images]


def curves(scores: dict[str, Tensor], **more: Any) -> WeakeningCurves:
    count = next(iter(scores.values())).shape[-1]
    names = more.pop("prompts", tuple(f"prompt {at}" for at in range(count)))
    return WeakeningCurves("Color", (0, 1, 4), scores, ("score",), names, (0,) * count, **more)


def test_only_the_words_columns_of_the_chosen_heads_change() -> None:
    heads = [(0, 1), (3, 2)]
    one = model()
    hooks = weaken_words(one, PROMPTS, heads, factor=0.5)
    names = [str(site.name) for site, _ in hooks]
    with one.hooks(hooks):
        _, edited = one.run_with_cache(
            PROMPTS, names_filter=names, steps=[0], show_progress=False, **settings()
        )
    _, plain = one.run_with_cache(
        PROMPTS, names_filter=names[:1], steps=[0], show_progress=False, **settings()
    )
    before, after = (cache.at(step=0)[names[0]] for cache in (plain, edited))
    for sample, prompt in enumerate(PROMPTS):
        columns = [at for word in prompt.split() for at in model().words(prompt, word)]
        expected = before[sample].clone()
        expected[1][:, columns] *= 0.5
        torch.testing.assert_close(after[sample], expected)


def test_a_batch_is_weakened_as_its_prompts_alone() -> None:
    heads = relevance().top("Color", 9)
    together = model().run_with_hooks(
        PROMPTS, fwd_hooks=weaken_words(model(), PROMPTS, heads), **settings()
    )
    for row, prompt in enumerate(PROMPTS):
        alone = model().run_with_hooks(
            prompt, fwd_hooks=weaken_words(model(), prompt, heads), **settings()
        )
        torch.testing.assert_close(
            latents_of(together)[row], latents_of(alone)[0], atol=1e-3, rtol=1e-3
        )


def test_some_words_can_be_chosen() -> None:
    (_, hook), *_ = weaken_words(model(), PROMPTS[0], [(0, 0)], words=["red cat"])
    assert hook.columns == ((0, 1),)
    with pytest.raises(WordError, match="'fox' is not in the prompt"):
        weaken_words(model(), PROMPTS[0], [(0, 0)], words=["fox"])


def test_one_word_needs_no_list() -> None:
    # Its letters would be words of many prompts.
    (_, hook), *_ = weaken_words(model(), PROMPTS[0], [(0, 0)], words="red cat")
    assert hook.columns == ((0, 1),)


def test_what_would_weaken_nothing_is_refused() -> None:
    with pytest.raises(
        RunError, match=r"heads= is empty: no head would be weakened.*relevance\.top"
    ):
        weaken_words(model(), PROMPTS, [])
    with pytest.raises(RunError, match=r"heads= names \(0, 1\) twice"):
        weaken_words(model(), PROMPTS, [(0, 1), (3, 0), (0, 1)])
    with pytest.raises(WordError, match=r"words= is empty: nothing would be weakened"):
        weaken_words(model(), PROMPTS, [(0, 0)], words=[])
    with pytest.raises(WordError, match="the prompt '' has no word"):
        weaken_words(model(), ["a red cat", ""], [(0, 0)])


@pytest.mark.slow
def test_settings_go_with_their_prompts() -> None:
    given = {"concept": "Color", "counts": [], "seeds": (1, 2), "show_progress": False}
    given |= settings(output_type="np", order="most")
    seen: list[list[Any]] = []

    def kept(images: list[Any], _texts: list[str]) -> list[float]:
        seen[-1] += [torch.as_tensor(image) for image in images]
        return [0.0] * len(images)

    negative = ["a dog", "red"]
    for size, rows in ((1, [0, 1]), (2, [0, 1]), (1, [1])):
        seen.append([])
        ordered_weakening(
            model(),
            [PROMPTS[row] for row in rows],
            relevance(),
            score=kept,
            batch_size=size,
            negative_prompt=[negative[row] for row in rows],
            **given,
        )
    one, two, second = (torch.stack(images) for images in seen)
    torch.testing.assert_close(one, two, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(one[1::2], second, atol=1e-3, rtol=1e-3)


def test_what_cannot_be_weakened_says_why() -> None:
    with pytest.raises(RunError, match="block 40 has no head that reads text"):
        weaken_words(model(), PROMPTS, [(40, 0)])
    with pytest.raises(RunError, match=r"heads= holds \[4\]; give \(block, head\) pairs"):
        weaken_words(model(), PROMPTS, [[4]])
    with pytest.raises(RunError, match="heads= is empty: no head would be weakened"):
        weaken_words(model(), PROMPTS, [])
    with pytest.raises(WordError, match="words= is empty: nothing would be weakened"):
        weaken_words(model(), PROMPTS, [(0, 0)], words=[])
    hooks = weaken_words(model(), PROMPTS, [(0, 0)])
    with pytest.raises(RunError, match="a batch of 1 for 2 prompts"):
        model().run_with_hooks(PROMPTS[0], fwd_hooks=hooks, **settings())
    given = {"concept": "Color", "score": brightness, "show_progress": False, **settings()}
    with pytest.raises(ResultError, match="1 target for 2 prompts"):
        ordered_weakening(model(), PROMPTS, relevance(), targets=["red"], **given)
    with pytest.raises(RunError, match="cannot weaken 29 of 28 heads"):
        ordered_weakening(model(), PROMPTS, relevance(), counts=[29], **given)
    with pytest.raises(ResultError, match="order='worst' is none of"):
        ordered_weakening(model(), PROMPTS, relevance(), order="worst", **given)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"prompts": []}, RunError, "prompts: nothing to draw"),
        ({"seeds": []}, RunError, "give how many samples"),
        ({"order": "random", "random_orders": 0}, RunError, "random_orders: nothing to draw"),
        ({"batch_size": 0}, RunError, "batch_size: nothing to draw"),
        ({"negative_prompt": ["x"] * 3}, RunError, "negative_prompt= has 3 rows for 2 prompts"),
        (
            {"num_images_per_prompt": 2},
            RunError,
            "2 images of each prompt .* one for each of seeds=",
        ),
        ({"output_type": "latent"}, RunError, "no images to score"),
        ({"score": lambda *_: 0.5}, ResultError, r"shape \(\) for 1 image"),
        (
            {"score": {"grey": lambda *_: [1, 2]}},
            ResultError,
            r"'grey' gave .* \(2,\) for 1 image",
        ),
    ],
    ids=[
        "prompts",
        "seeds",
        "random",
        "batch",
        "rows",
        "images",
        "latents",
        "one number",
        "two numbers",
    ],
)
def test_what_cannot_be_drawn_or_scored_says_why(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    given = {"concept": "Color", "score": brightness, "counts": [], "seeds": 1, "prompts": PROMPTS}
    given |= {"order": "most", "show_progress": False, **settings(output_type="pil"), **changes}
    with pytest.raises(error, match=message):
        ordered_weakening(model(), given.pop("prompts"), relevance(), **given)


@pytest.mark.slow
def test_orders_begin_and_end_alike_and_differ_between(tmp_path: Path) -> None:
    found = ordered_weakening(
        model(),
        PROMPTS,
        relevance(),
        concept="Color",
        score={"brightness": brightness, "length": lambda _, texts: [len(t) for t in texts]},
        counts=[5],
        seeds=(1,),
        random_orders=2,
        batch_size=2,
        keep_images=True,
        targets=["red", "two"],
        show_progress=False,
        **settings(output_type="pil"),
    )
    assert found.counts == (0, 5, 28)
    assert found.scores["random"].shape == (2, 2, 3, 2)
    assert found.scores["most"].shape == (2, 1, 3, 2)
    most, least = (found.curve(order) for order in ("most", "least"))
    assert torch.equal(most[[0, 2]], least[[0, 2]])
    assert most[1] != least[1]
    assert found.curve("most", "length").tolist() == [3, 3, 3]
    plain = model()(PROMPTS, seed=1, **settings(output_type="pil"))
    assert found.curve("random")[0].item() == pytest.approx(
        np.mean(brightness(plain.images, PROMPTS))
    )
    assert found.images is not None
    assert np.array_equal(found.images["least"][0][0][1], plain.images[1])
    loaded = WeakeningCurves.load(found.save(tmp_path / "kept"))
    assert loaded.area() == found.area()
    assert loaded.plot() is not None


def test_areas_by_hand() -> None:
    most = torch.tensor([[[[1.0, 1.0], [0.0, 0.5], [0.0, 0.0]]]])
    least = torch.tensor([[[[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]]])
    found = curves({"most": most, "least": least})
    assert found.curve("most").tolist() == [1, 0.25, 0]
    # trapezoids over 0-1 and 1-4 of 4 heads
    assert found.auc("most") == pytest.approx((0.625 + 0.375) / 4)
    assert found.area() == pytest.approx((1 + 1.5) / 4 - 0.25)
    low, high = found.area_interval(draws=200)
    assert low <= found.area() <= high
    assert low == pytest.approx(0.25)  # twice the second prompt
    assert high == pytest.approx(0.5)


def test_missing_scores_are_left_out() -> None:
    most = torch.tensor([[[[1.0, float("nan")], [0.5, float("nan")], [0.0, float("nan")]]]])
    found = curves({"most": most, "least": most})
    assert found.curve("most").tolist() == [1, 0.5, 0]
    assert found.area_interval(draws=50) == (0, 0)
    with pytest.raises(ResultError, match="'random' was not run"):
        found.curve("random")
    with pytest.raises(ResultError, match="no score 'clip'"):
        found.curve("most", "clip")


def test_the_published_grids() -> None:
    assert published_counts(128) == (0, 1, 11, 21, 31, 41, 51, 61, 71, 81, 91, 101, 111, 121, 128)
    sdxl = published_counts(1300)
    assert sdxl[:3] == (0, 11, 111)
    assert sdxl[-2:] == (1211, 1300)


def test_the_published_prompts() -> None:
    sizes = {name: len(weakening_prompts(name)) for name in weakening_concepts()}
    assert sizes == {
        "Color": 50,
        "Weather Conditions": 20,
        "Animals": 10,
        "Material": 50,
        "Image Style": 50,
        "Geometric Patterns": 25,
        "Nature Scenes": 10,
        "Fruits and Vegetables": 10,
        "Furniture": 10,
    }
    assert weakening_prompts("Color")[3] == ("a red ballon", "red")
    assert weakening_prompts("Weather Conditions")[0].prompt == "a cat on a snowy day"
    with pytest.raises(ConceptError, match=r"'Colour'. Closest: 'Color'"):
        weakening_prompts("Colour")


def test_words_that_the_runs_length_cuts_away_are_no_words() -> None:
    """The last place that is kept is the end mark's."""
    flux, prompt = HookedDiffusion(shared_pipe("flux")), "a cat on a table"
    heads = [(0, 0)]
    assert weaken_words(flux, prompt, heads, words="table")
    with pytest.raises(WordError, match="behind the last token"):
        weaken_words(flux, prompt, heads, words="table", max_sequence_length=3)
