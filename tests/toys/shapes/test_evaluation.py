from itertools import islice

import numpy as np
import pytest

from diffusion_lens.toys.shapes.captions import read_caption
from diffusion_lens.toys.shapes.evaluation import GROUPS, grade_images, test_captions
from diffusion_lens.toys.shapes.render import render
from diffusion_lens.toys.shapes.sampling import training_examples
from diffusion_lens.toys.shapes.scenes import pose
from diffusion_lens.toys.shapes.world import HELD_OUT_PAIRS


@pytest.mark.slow
def test_there_are_500_different_captions():
    captions = test_captions()
    assert len({one.caption for one in captions}) == len(captions) == 500
    assert {g: sum(one.group == g for one in captions) for g in GROUPS} == GROUPS


def test_training_sees_none_of_them():
    captions = {one.caption for one in test_captions()}
    assert not captions & {example.caption for example in islice(training_examples(0), 3000)}


def test_groups_say_how_many_objects_and_whether_a_pair_is_new():
    for one in test_captions():
        things = read_caption(one.caption).things
        assert len(things) == (2 if one.group.startswith("pair") else 1)
        new = any((thing.colour, thing.shape) in HELD_OUT_PAIRS for thing in things)
        assert new == one.group.endswith("new pair")


def test_a_perfect_model_gets_everything_right():
    rng = np.random.default_rng(0)
    captions = test_captions()[::10]
    images = np.stack([render(pose(one.caption, rng=rng), rng=rng).image for one in captions])
    report = grade_images(images, captions)
    assert all(share == 1 for parts in report.shares.values() for share in parts.values())
    assert report.counts["single, all"] + report.counts["pair, all"] == len(captions)
    assert "| pair, all | 35 | 100.0 |" in report.table()


def test_images_of_other_captions_are_mostly_wrong():
    rng = np.random.default_rng(0)
    captions = test_captions()[::10]
    images = np.stack([render(pose(one.caption, rng=rng)).image for one in captions])
    assert grade_images(np.roll(images, 1, axis=0), captions).shares["pair, all"]["all"] < 0.1


def test_images_and_captions_must_match_in_number():
    with pytest.raises(ValueError, match="1 image for 2 captions"):
        grade_images(np.zeros((1, 32, 32, 3), np.uint8), test_captions()[:2])
