"""The edit benchmark grades what is known: exact edits, no edits, and edits of too much."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from diffusion_lens.toys.benchmark.editing import (
    ATTRIBUTES,
    EditTask,
    edit_tasks,
    editing_table,
    neglected,
    outside,
    score_edits,
)
from diffusion_lens.toys.shapes.render import render
from diffusion_lens.toys.shapes.scenes import pose
from diffusion_lens.toys.shapes.world import HELD_OUT_PAIRS

TASKS = edit_tasks(12)


def drawn(caption: str, seed: int) -> Image.Image:
    """An exact render of a caption, at a place that the seed fixes."""
    return Image.fromarray(render(pose(caption, rng=np.random.default_rng(seed))).image)


def exact(task: EditTask) -> Sequence[Image.Image]:
    every = (task.source, *(task.targets[name] for name in ATTRIBUTES))
    return [drawn(caption, task.seed) for caption in every]


def nothing(task: EditTask) -> Sequence[Image.Image]:
    return [drawn(task.source, task.seed)] * 4


def test_tasks_change_one_word_that_training_showed() -> None:
    assert len(TASKS) == len({(task.source, *task.targets.values()) for task in TASKS})
    for task in TASKS:
        for name, target in task.targets.items():
            before, after = task.words[name]
            assert target == task.source.replace(f" {before}", f" {after}", 1)
            words = target.split()
            assert (words[2], words[3]) not in HELD_OUT_PAIRS
    assert edit_tasks(12) == TASKS
    with pytest.raises(ValueError, match="0 tasks"):
        edit_tasks(0)


@pytest.mark.slow
def test_exact_edits_are_right_and_keep_the_rest() -> None:
    for score in score_edits(exact, TASKS).values():
        assert score.count >= 10
        assert score.changed > 0.9
        assert score.kept > 0.9
        assert score.moved < 0.01
        low, high = score.intervals["both"]
        assert low <= score.both <= high


@pytest.mark.slow
def test_no_edit_keeps_everything_and_changes_nothing() -> None:
    for score in score_edits(nothing, TASKS).values():
        assert score.changed < 0.1
        assert score.kept > 0.9
        assert score.moved == 0


def test_another_image_moves_the_background() -> None:
    def inverted(task: EditTask) -> Sequence[Image.Image]:
        source = drawn(task.source, task.seed)
        return [source] + [Image.eval(source, lambda value: 255 - value)] * 3

    for score in score_edits(inverted, TASKS).values():
        assert score.both < 0.5
        assert score.moved > 0.1


def test_the_object_of_either_image_is_left_out() -> None:
    one, other = np.full((32, 32, 3), 245, np.uint8), np.full((32, 32, 3), 245, np.uint8)
    one[4:12, 4:12] = other[20:28, 20:28] = (220, 30, 40)
    found = outside(one, other)
    assert not found[8, 8]
    assert not found[24, 24]
    assert found[16, 16]


@pytest.mark.slow
def test_a_table_has_a_row_for_each_method_and_attribute() -> None:
    lines = editing_table({"none": score_edits(nothing, TASKS)}).splitlines()
    assert len(lines) == 2 + len(ATTRIBUTES)
    assert lines[2].startswith("| none | colour | ")


def test_editors_must_edit_every_attribute_of_something() -> None:
    with pytest.raises(ValueError, match="the editor gave 1 edits"):
        score_edits(lambda task: nothing(task)[:2], TASKS)
    black = Image.new("RGB", (32, 32))
    with pytest.raises(ValueError, match="none of 12 source images"):
        score_edits(lambda _: [black] * 4, TASKS)


def test_neglect_is_a_thing_that_is_missing_or_wrong() -> None:
    caption = "a red circle above a blue square on a white background"
    alone = drawn("a red circle on a white background", 0)
    swapped = drawn("a blue circle above a red square on a white background", 0)
    right = drawn(caption, 0)
    assert neglected([right, alone, swapped], [caption] * 3) == [False, True, True]
