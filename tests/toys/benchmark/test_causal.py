import numpy as np
import pytest

from diffusion_lens.toys.benchmark.causal import (
    causal_table,
    replaced,
    score_intervention,
)
from diffusion_lens.toys.benchmark.polysemy import drawn_sense, score_polysemy, sense_prompts
from diffusion_lens.toys.benchmark.weakening import weakening_curve
from diffusion_lens.toys.shapes.captions import CaptionError
from diffusion_lens.toys.shapes.render import render
from diffusion_lens.toys.shapes.scenes import pose

CAPTIONS = (
    "a red circle on a white background",
    "a red circle above a blue square on a black background",
    "a large striped yellow cross on a gray background",
)


def perfect(captions):
    rng = np.random.default_rng(0)
    return np.stack([render(pose(caption, rng=rng), rng=rng).image for caption in captions])


def made(change):
    return lambda captions: perfect([change(caption) for caption in captions])


def greener(caption):
    return replaced(caption, target="colour", word="green")


def test_a_replaced_word_is_the_only_change():
    assert greener(CAPTIONS[1]) == "a green circle above a blue square on a black background"
    other = replaced(CAPTIONS[2], target="background", word="pink")
    assert other == "a large striped yellow cross on a pink background"
    with pytest.raises(CaptionError, match="says no texture that could become 'dotted'"):
        replaced(CAPTIONS[0], target="texture", word="dotted")


@pytest.mark.parametrize(
    ("message", "target", "word"),
    [
        (r"target='color' is none of .* Closest: 'colour'", "color", "blue"),
        (r"target='relation' is none of", "relation", "below"),
        (r"word='grean' is none of .* Closest: 'green'", "colour", "grean"),
        (r"word='circle' is none of", "colour", "circle"),
        (r"word='medium' is none of \['small', 'large'\]", "size", "medium"),
        (r"word='green' is none of", "background", "green"),
    ],
)
def test_what_no_caption_can_say_is_refused(message, target, word):
    with pytest.raises(CaptionError, match=message):
        replaced(CAPTIONS[2], target=target, word=word)


def test_a_clean_change_of_colour_is_lost_changed_and_alone():
    becomes = [greener(caption) for caption in CAPTIONS]
    score = score_intervention(perfect, made(greener), CAPTIONS, target="colour", becomes=becomes)
    assert (score.count, score.lost, score.kept, score.specific) == (3, 1, 1, 1)
    assert score.changed == 1


def test_doing_nothing_loses_nothing():
    score = score_intervention(perfect, perfect, CAPTIONS, target="shape")
    assert (score.lost, score.kept, score.specific, score.changed) == (0, 1, 0, None)


def test_damage_is_not_specific():
    def noise(captions):
        return np.random.default_rng(0).integers(0, 256, (len(captions), 32, 32, 3), dtype=np.uint8)

    score = score_intervention(perfect, noise, CAPTIONS, target="colour")
    assert (score.lost, score.kept, score.specific) == (1, 0, 0)


def test_captions_that_were_wrong_before_do_not_count():
    score = score_intervention(made(greener), perfect, CAPTIONS, target="colour")
    assert score.count == 0 and np.isnan(score.lost)


def test_unknown_targets_and_lengths_are_refused():
    with pytest.raises(CaptionError, match=r"target='color' is none of .* Closest: 'colour'"):
        score_intervention(perfect, perfect, CAPTIONS, target="color")
    with pytest.raises(ValueError, match="1 captions to become for 3 captions"):
        score_intervention(perfect, perfect, CAPTIONS, target="colour", becomes=["red"])


def test_captions_that_say_nothing_of_the_target_and_lost_images_are_refused():
    with pytest.raises(CaptionError, match="says no texture, which is the target"):
        score_intervention(perfect, perfect, CAPTIONS, target="texture")
    with pytest.raises(ValueError, match="the intervention gives 2 images for 3 captions"):
        score_intervention(perfect, lambda c: perfect(c)[:2], CAPTIONS, target="colour")


def test_the_table_leaves_out_what_was_not_asked():
    score = score_intervention(perfect, perfect, CAPTIONS, target="colour")
    assert causal_table({"none": score}).splitlines()[2] == "| none | 3 | 0.0 | 100.0 | 0.0 |  |"


def test_the_heads_of_an_attribute_bend_its_curve_alone():
    def weakened(captions, heads):
        return made(greener)(captions) if "colour head" in heads else perfect(captions)

    first = weakening_curve(weakened, ["colour head", "b", "c"], CAPTIONS, counts=(1, 3))
    last = weakening_curve(weakened, ["b", "c", "colour head"], CAPTIONS, counts=(1, 3))
    assert first.weakened == (0, 1, 3)
    assert first.shares["colour"] == (1, 0, 0) and first.shares["shape"] == (1, 1, 1)
    assert first.area("colour") == pytest.approx(1 / 6)
    assert first.selectivity("colour") > last.selectivity("colour") > 0
    with pytest.raises(ValueError, match="cannot weaken 4 of 3 heads"):
        weakening_curve(weakened, ["a", "b", "c"], CAPTIONS, counts=(4,))


def test_a_perfect_model_misreads_nothing():
    score = score_polysemy(perfect)
    assert score.misread == {"fruit": 0, "colour": 0} == score.missing
    assert score.fruit == 0  # the bare word is posed as the colour
    assert set(score.count) == {"fruit", "colour", "either"}


def test_a_model_that_knows_one_sense_misreads_the_other():
    prompts = [one for one in sense_prompts() if one.sense != "either"]
    always_fruit = made(lambda caption: "an orange on a white background")
    score = score_polysemy(always_fruit, prompts=[*prompts, sense_prompts()[-1]])
    assert score.misread == {"fruit": 0, "colour": 1} and score.fruit == 1


def test_without_an_orange_object_no_sense_is_drawn():
    assert drawn_sense(perfect(["a red circle on a white background"])[0]) is None
