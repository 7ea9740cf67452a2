"""Maps and rule by hand, every family, results and clear errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from diffusion_lens import HookedDiffusion, Run, toys
from diffusion_lens.analyses.attend_and_excite import Excite, ExcitedImages, attend_and_excite
from diffusion_lens.analyses.attend_and_excite.maps import Columns, blur, resized, token_maxima
from diffusion_lens.errors import (
    ConceptError,
    ResultError,
    RunError,
    UnsupportedModelError,
    WordError,
)
from diffusion_lens.interventions.pattern_gradient import LossAt
from tests.analyses.test_concept_steering import relevance
from tests.pipelines import latents_of, shared_pipe, short, traces

PROMPT = "a red cat on the glass table"


def model(name: str = "sd") -> HookedDiffusion:
    return HookedDiffusion(shared_pipe(name))


def settings(name: str = "sd", **more: Any) -> dict[str, Any]:
    given = {key: value for key, value in short(name).items() if key != "prompt"}
    return {**given, **more}


# -- maps -------------------------------------------------------------------------------------


def test_maxima_by_hand() -> None:
    maps = torch.zeros(4, 2, 2)  # start, one, two, end
    maps[0] = 5  # the start token takes no part
    maps[1, 0, 0] = 0.02
    maps[3, 1, 1] = 0.01
    found = token_maxima([maps, maps], [1, 2], columns=Columns(), smooth=None)
    e = torch.tensor([2.0, 1.0]).exp()
    torch.testing.assert_close(found, torch.stack([e[0] / (e[0] + 2), torch.tensor(1 / 3)]))
    shorter = token_maxima([maps], [1], columns=Columns(1, 3), smooth=None)
    torch.testing.assert_close(shorter, e[:1] / (e[0] + 1))


def test_a_blur_keeps_a_constant_and_the_sum_inside() -> None:
    flat = torch.full((2, 7, 7), 3.0)
    torch.testing.assert_close(blur(flat, (3, 3), (0.5, 0.5)), flat)
    point = torch.zeros(7, 7)
    point[3, 3] = 1
    found = blur(point, (3, 5), (0.5, 1.1))
    torch.testing.assert_close(found.sum(), torch.tensor(1.0))
    across = torch.exp(torch.tensor([-2.0, 0, -2.0]))
    torch.testing.assert_close(found.sum(1)[2:5], across / across.sum())


def test_maps_grow_by_interpolation_and_shrink_after_a_blur() -> None:
    maps = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert resized(maps, (4, 4)) is maps
    larger = functional.interpolate(maps[None], (8, 8), mode="bicubic", align_corners=False)[0]
    assert torch.equal(resized(maps, (8, 8)), larger)
    smoothed = blur(maps, (3, 3), (0.8, 0.8))
    smaller = functional.interpolate(smoothed[None], (2, 2), mode="bicubic", align_corners=False)
    torch.testing.assert_close(resized(maps, (2, 2)), smaller[0])


# -- the rule ---------------------------------------------------------------------------------


class _Falling:
    """A loss that is the latent itself, and whose gradient is 1."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    def __call__(self, latents: Tensor) -> LossAt:
        self.asked.append(float(latents))
        return LossAt(max(0.0, float(latents)), torch.ones(()), 5)


def test_one_move_a_step_that_gets_smaller() -> None:
    rule = Excite(0.1, (1.0, 0.5), {}, max_iter_to_alter=3)
    evaluate = _Falling()
    assert float(rule(torch.tensor(1.0), 0, evaluate)) == pytest.approx(0.9)
    assert float(rule(torch.tensor(1.0), 2, evaluate)) == pytest.approx(1 - 0.1 * 0.75**0.5)
    assert float(rule(torch.tensor(1.0), 3, evaluate)) == 1
    assert float(rule(torch.tensor(0.0), 0, evaluate)) == 0
    assert len(evaluate.asked) == 3
    assert rule.losses == [(0, 1.0), (2, 1.0)]


def test_refinement_moves_once_more_after_the_threshold() -> None:
    rule = Excite(0.25, (1.0, 1.0), {0: 0.4}, max_iter_to_alter=0)
    found = rule(torch.tensor(1.0), 0, _Falling())
    assert [loss for _, loss in rule.losses] == [1.0, 0.75, 0.5]  # 0.5 is at most 0.6, and moves
    assert float(found) == 0.25
    bounded = Excite(0.001, (1.0, 1.0), {0: 0.4}, max_iter_to_alter=0, max_rounds=4)
    bounded(torch.tensor(1.0), 0, _Falling())
    assert len(bounded.losses) == 4
    enough = Excite(0.25, (1.0, 1.0), {0: 0.4}, max_iter_to_alter=0)
    assert float(enough(torch.tensor(0.5), 0, _Falling())) == 0.5


# -- runs -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
def test_words_are_excited_in_every_family_of_images(name: str) -> None:
    result = attend_and_excite(
        model(name), PROMPT, words="cat", thresholds={}, max_iter_to_alter=2, step_size=1.0,
        **settings(name),
    )  # fmt: skip
    assert result.steps == (0, 1)
    assert result.latents.isfinite().all()
    plain = latents_of(model(name)(PROMPT, **settings(name)))
    assert not torch.allclose(result.latents, plain, atol=1e-4)


def test_a_step_size_of_zero_is_the_plain_image() -> None:
    result = attend_and_excite(model(), PROMPT, words=["cat", 7], step_size=0.0, **settings())
    assert torch.equal(result.latents, latents_of(model()(PROMPT, **settings())))


def test_concepts_by_word_in_order_or_one_for_all() -> None:
    given = {"relevance": relevance(), "thresholds": {}, "max_iter_to_alter": 1, **settings()}
    words = ["red", "cat"]
    one = attend_and_excite(model(), PROMPT, words=words, concepts=["Color", "Animals"], **given)
    two = attend_and_excite(
        model(), PROMPT, words=words, concepts={"cat": "Animals", "red": "Color"}, **given
    )
    other = attend_and_excite(model(), PROMPT, words=words, concepts="Animals", **given)
    assert torch.equal(one.latents, two.latents)
    assert not torch.equal(one.losses, other.losses)
    assert "2412.02237" in one.citation


def test_what_competes_changes_the_loss() -> None:
    given = {"words": "cat", "thresholds": {}, "max_iter_to_alter": 1, **settings()}
    losses = [
        float(attend_and_excite(model(), PROMPT, competing=choice, **given).losses[0])
        for choice in ("all", "without_last", "prompt")
    ]
    assert losses[0] > losses[1] > losses[2]  # the fewer compete, the more each gets


def test_a_loss_without_a_gradient_is_said() -> None:
    toy = HookedDiffusion.toy("shapes-unet")
    given = toys.call_defaults(toy, steps=1) | {"words": "triangle", "thresholds": {}}
    caption = "a green triangle below a red square on a white background"
    with pytest.warns(UserWarning, match="1 before every move: at resolution=4 another token"):
        attend_and_excite(toy, caption, resolution=4, **given)
    with pytest.warns(UserWarning, match="at the default resolution another token"):
        attend_and_excite(toy, caption, **given)
    assert attend_and_excite(toy, caption, resolution=8, **given).losses[0] < 0.99


def test_a_result_comes_back_and_is_drawn(tmp_path: Path) -> None:
    given = settings(output_type="pil")
    result = attend_and_excite(model(), Run(PROMPT, seed=1), words="cat", thresholds={}, **given)
    back = ExcitedImages.load(result.save(tmp_path))
    assert back.words == {"cat": model().words(PROMPT, "cat")}
    assert torch.equal(back.losses, result.losses)
    assert back.image.size == result.image.size
    result.plot()
    assert "3 moves" in repr(result)
    with pytest.raises(ResultError, match="has no image; decode"):
        _ = attend_and_excite(model(), PROMPT, words="cat", **settings()).image


def test_what_cannot_be_excited_says_why() -> None:
    def excite(prompt: Any = PROMPT, **more: Any) -> ExcitedImages:
        return attend_and_excite(model(), prompt, **{"words": "cat", **settings(), **more})

    before = traces(shared_pipe("sd"))
    with pytest.raises(WordError, match="'dog' is not in the prompt"):
        excite(words="dog")
    with pytest.raises(WordError, match="has no token 40"):
        excite(words=[40])
    with pytest.raises(WordError, match=r"token 0 has no share .* over the tokens 1 to 76 of"):
        excite(words=[0])
    with pytest.raises(WordError, match=r"token 8 has no share .* over the tokens 1 to 7 of"):
        excite(words=[8], competing="prompt")
    with pytest.raises(RunError, match=r"prompt_3= gives .* a second text"):
        attend_and_excite(model("sd3"), PROMPT, words="cat", prompt_3="dogs", **settings("sd3"))
    with pytest.raises(WordError, match="words= is empty"):
        excite(words=[])
    with pytest.raises(RunError, match="2 of the prompts"):
        excite([PROMPT, PROMPT])
    with pytest.raises(RunError, match="2 of the prompts"):
        excite(num_images_per_prompt=2)
    with pytest.raises(RunError, match=r"side 5; there are the sides \[8, 16\]"):
        excite(resolution=5)
    with pytest.raises(RunError, match=r"competing='some' is none of"):
        excite(competing="some")
    with pytest.raises(RunError, match=r"thresholds= names the steps \[9\], .* at most 3"):
        excite(thresholds={9: 0.5}, max_iter_to_alter=0)
    with pytest.raises(RunError, match=r"thresholds= names the steps \[3\], .* at most 3"):
        excite(thresholds={3: 0.5}, max_iter_to_alter=0)
    with pytest.raises(RunError, match="would never be moved"):
        excite(thresholds={}, max_iter_to_alter=0)
    with pytest.raises(ConceptError, match="go together"):
        excite(concepts="Color")
    with pytest.raises(ConceptError, match="Closest: 'Color'"):
        excite(relevance=relevance(), concepts="Colour")
    with pytest.raises(ConceptError, match="2 concepts for 1 words"):
        excite(relevance=relevance(), concepts=["Color", "Color"])
    with pytest.raises(ConceptError, match="names no concept of 'cat'"):
        excite(relevance=relevance(), concepts={"dog": "Color"})
    video = HookedDiffusion(shared_pipe("cogvideox"))
    given = {key: value for key, value in short("cogvideox").items() if key != "prompt"}
    with pytest.raises(UnsupportedModelError, match=r"the grid .* of a video"):
        attend_and_excite(video, PROMPT, words="cat", **given)
    assert traces(shared_pipe("sd")) == before
