import numpy as np
import pytest

from diffusion_lens.toys.shapes.grading import grade
from diffusion_lens.toys.shapes.render import render
from diffusion_lens.toys.shapes.scenes import pose, sample_pair, sample_single
from diffusion_lens.toys.shapes.world import RESOLUTION

FRAGMENTS = (
    "red", "a circle", "striped", "large", "orange", "an orange", "above", "left of", "black",
    "white background", "", "a red circle above a square", "a small green square",
    "a red circle above", "an orange right",
)  # fmt: skip


def test_objects_lie_inside_the_image_and_apart():
    rng = np.random.default_rng(0)
    for _ in range(100):
        for scene in (sample_single(rng), sample_pair(rng)):
            for thing in scene.things:
                reach = min(thing.x, thing.y, RESOLUTION - thing.x, RESOLUTION - thing.y)
                assert reach >= thing.radius
        first, second = scene.things
        along = max(abs(first.x - second.x), abs(first.y - second.y))
        assert along > first.radius + second.radius


def test_the_relation_of_a_pair_holds():
    rng = np.random.default_rng(0)
    for _ in range(100):
        scene = sample_pair(rng)
        first, second = scene.things
        right, down = first.x - second.x, first.y - second.y
        ahead = {"above": -down, "below": down, "left of": -right, "right of": right}
        assert max(ahead, key=lambda word: ahead[word]) == scene.relation


def test_pairs_have_two_colours():
    rng = np.random.default_rng(0)
    assert all(len({t.colour for t in sample_pair(rng).things}) == 2 for _ in range(100))


@pytest.mark.slow
@pytest.mark.parametrize("text", FRAGMENTS)
def test_a_posed_caption_is_true_of_its_render(text):
    rng = np.random.default_rng(0)
    for _ in range(5):
        assert grade(render(pose(text, rng=rng), rng=rng).image, text).right
