import numpy as np
import pytest

from diffusion_lens.toys.benchmark.baselines import centred_disc, exact_on_grid, random_map
from diffusion_lens.toys.benchmark.segmentation import (
    enlarge,
    score_segmentation,
    segmentation_table,
    segmentation_tasks,
)
from diffusion_lens.toys.shapes.sampling import Example, held_out
from diffusion_lens.toys.shapes.world import BACKGROUNDS, COLOURS, SHAPES, TEXTURES


@pytest.fixture(scope="module")
def tasks():
    return segmentation_tasks(30, noise_level=0.3)


def test_cells_are_repeated():
    expected = [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
    assert np.array_equal(enlarge(np.array([[1.0, 2], [3, 4]]), size=4), expected)
    with pytest.raises(ValueError, match="3 x 3 cells does not tile 32 x 32"):
        enlarge(np.ones((3, 3)))


def test_queries_point_at_their_words(tasks):
    vocabulary = {"colour": COLOURS, "shape": SHAPES, "texture": TEXTURES}
    for task in tasks:
        words = task.caption.split()
        for query in task.queries:
            asked = [words[place] for place in query.words]
            if query.kind in vocabulary:
                assert len(asked) == 1 and asked[0] in vocabulary[query.kind]
            elif query.kind == "background":
                assert asked[0] in BACKGROUNDS and asked[1] == "background"
            else:
                assert asked[-1] in SHAPES and asked[-2] in COLOURS


def test_masks_show_the_colour_that_is_asked_for(tasks):
    for task in tasks:
        words = task.caption.split()
        for query in task.queries:
            if query.kind == "colour" and not {"striped", "dotted"} & set(words):
                shown = np.median(task.image[query.mask], axis=0)
                assert np.abs(shown - COLOURS[words[query.words[0]]]).max() < 12


def test_captions_are_held_out_and_tasks_are_repeatable(tasks):
    again = segmentation_tasks(30, noise_level=0.3)
    assert [t.caption for t in again] == [t.caption for t in tasks]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(again, tasks, strict=True))
    assert callable(held_out) and Example
    single = segmentation_tasks(3, noise_level=0.3, pairs=False)
    assert all(sum(q.kind == "object" for q in task.queries) == 1 for task in single)


@pytest.mark.slow
def test_baselines_come_in_their_order(tasks):
    methods = {
        "random": random_map,
        "disc": centred_disc,
        "8": exact_on_grid(8),
        "16": exact_on_grid(16),
    }
    scores = {name: score_segmentation(method, tasks) for name, method in methods.items()}
    colour = [scores[name]["colour"] for name in methods]
    assert [s.average_precision for s in colour] == sorted(s.average_precision for s in colour)
    assert [s.miou for s in colour] == sorted(s.miou for s in colour)
    assert colour[0].accuracy == pytest.approx(0.5, abs=0.05)


def test_the_exact_mask_on_pixels_is_perfect(tasks):
    for score in score_segmentation(exact_on_grid(32), tasks).values():
        assert (score.average_precision, score.miou, score.accuracy) == pytest.approx((1, 1, 1))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (np.ones((1, 16, 16)), r"gives an array of shape \(1, 16, 16\), 0 of .* asked for 7 maps"),
        (np.ones((16, 16)), r"gives an array of shape \(16, 16\), 0 of"),
        (np.ones((7, 0, 0)), r"gives an array of shape \(7, 0, 0\), 0 of"),
        (None, r"gives an array of shape \(\), 1 of its values not finite"),
    ],
)
def test_maps_of_another_number_or_shape_are_refused(answer, message, tasks):
    with pytest.raises(ValueError, match=message):
        score_segmentation(lambda task: answer, tasks)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_maps_with_a_value_that_is_not_finite_are_refused(value, tasks):
    def method(task):
        maps = np.ones((len(task.queries), 16, 16))
        maps[0, 3, 4] = value
        return maps

    with pytest.raises(ValueError, match="1 of its values not finite"):
        score_segmentation(method, tasks)


@pytest.mark.parametrize(("count", "level"), [(0, 0.5), (-1, 0.5), (1, 2.0), (1, -0.1)])
def test_tasks_that_there_are_not_are_refused(count, level):
    with pytest.raises(
        ValueError, match=f"{count} tasks at noise_level={level}; there is at least"
    ):
        segmentation_tasks(count, noise_level=level)


def test_cells_must_tile_the_image():
    with pytest.raises(ValueError, match="5 cells do not tile 32 pixels"):
        exact_on_grid(5)


def test_the_table_has_a_row_for_each_method(tasks):
    table = segmentation_table({"random": score_segmentation(random_map, tasks)}).splitlines()
    assert table[0] == "| method | object | colour | shape | texture | background |"
    assert table[2].startswith("| random | ")
