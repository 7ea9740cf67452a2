import numpy as np
import pytest
from PIL import Image

from diffusion_lens.toys.shapes.grading import grade
from diffusion_lens.toys.shapes.render import render
from diffusion_lens.toys.shapes.sampling import sample_example
from diffusion_lens.toys.shapes.scenes import pose

CAPTION = "a large striped red circle on a white background"


def _drawn(caption, seed=0):
    rng = np.random.default_rng(seed)
    return render(pose(caption, rng=rng), rng=rng).image


@pytest.mark.slow
@pytest.mark.parametrize(("noise", "least"), [(0, 0.993), (12, 0.98)])
def test_renders_are_graded_right(noise, least):
    rng = np.random.default_rng(11)
    right = []
    for _ in range(150):
        example = sample_example(rng)
        image = render(example.scene, rng=rng).image + rng.normal(0, noise, (32, 32, 3))
        right.append(grade(np.clip(image, 0, 255).astype(np.uint8), example.caption).right)
    assert np.mean(right) >= least


@pytest.mark.parametrize(
    ("drawn", "wrong"),
    [
        ("a large striped blue circle on a white background", "colour"),
        ("a large striped red square on a white background", "shape"),
        ("a large dotted red circle on a white background", "texture"),
        ("a small red circle on a white background", "size"),
        ("a large striped red circle on a black background", "background"),
    ],
)
def test_one_wrong_word_is_the_one_that_is_marked(drawn, wrong):
    parts = dict(grade(_drawn(drawn), CAPTION).parts)
    assert parts[wrong] is False and parts["all"] is False
    expected = {wrong, "all"} | ({"texture"} if wrong == "size" else set())  # small ones are plain
    assert {part for part, right in parts.items() if right is False} == expected


def test_what_is_not_said_is_not_graded():
    result = grade(_drawn(CAPTION), "red")
    assert result.right and result.background is None and result.relation is None
    assert result.things[0].shape is None


def test_swapped_colours_are_a_wrong_binding():
    image = _drawn("a red circle left of a blue square on a gray background")
    result = grade(image, "a blue circle left of a red square on a gray background")
    assert not result.right and result.background
    assert [thing.right for thing in result.things].count(True) == 0


@pytest.mark.parametrize("other", ["right of", "above", "below"])
def test_another_relation_is_wrong(other):
    image = _drawn("a red circle left of a blue square on a gray background")
    result = grade(image, f"a red circle {other} a blue square on a gray background")
    assert result.relation is False
    assert all(thing.right for thing in result.things)


def test_a_second_object_is_one_too_many_and_a_missing_one_too_few():
    pair = _drawn("a red circle left of a blue square on a gray background")
    assert grade(pair, "a red circle on a gray background").count is False
    single = _drawn("a red circle on a gray background")
    result = grade(single, "a red circle left of a blue square on a gray background")
    assert result.count is False and [thing.found for thing in result.things] == [True, False]


def test_the_fruit_is_no_orange_circle():
    assert not grade(_drawn("an orange circle"), "an orange").right
    assert not grade(_drawn("an orange"), "an orange circle").right
    assert (
        grade(_drawn("an orange"), "orange").right
        and grade(_drawn("an orange circle"), "orange").right
    )


def test_the_axis_of_a_bare_relation_word_is_graded():
    image = _drawn("a red circle left of a blue square on a gray background")
    assert grade(image, "right").right
    assert grade(image, "above").relation is False


def test_a_single_object_on_the_other_side_is_wrong():
    assert grade(_drawn("a red circle above"), "a red circle above").right
    assert grade(_drawn("a red circle above"), "a red circle below").relation is False


def test_other_image_sizes_are_refused():
    with pytest.raises(
        ValueError, match=r"uint8 image of shape \(32, 32, 3\).* this is uint8 of \(64"
    ):
        grade(np.zeros((64, 64, 3), np.uint8), "red")


def test_a_picture_is_graded_like_its_pixels():
    image = _drawn(CAPTION)
    assert grade(Image.fromarray(image), CAPTION) == grade(image, CAPTION)
