from itertools import islice

import numpy as np
import pytest

from diffusion_lens.toys.shapes.finding import find_things
from diffusion_lens.toys.shapes.render import render
from diffusion_lens.toys.shapes.repainting import UNNAMED, repaint
from diffusion_lens.toys.shapes.sampling import Example, training_examples
from diffusion_lens.toys.shapes.world import COLOURS, FRUIT, HELD_OUT_PAIRS, Scene, Thing


@pytest.fixture(scope="module")
def repainted():
    rng = np.random.default_rng(0)
    return [repaint(one, share=0.5, rng=rng) for one in islice(training_examples(0), 600)]


def _pair():
    things = (Thing(shape="cross", colour="red", x=8), Thing(shape=FRUIT, colour=FRUIT, x=24))
    scene = Scene(things=things, background="white", relation="left of")
    return Example(scene, "a red cross left of an orange on a white background")


def test_the_caption_does_not_name_a_colour_that_is_not_there():
    example = repaint(_pair(), share=1.0, rng=np.random.default_rng(0))
    assert example.caption == f"a {UNNAMED} cross left of an orange on a white background"
    cross, fruit = example.scene.things
    assert cross.paint is not None and fruit.paint is None


def test_nothing_changes_at_a_share_of_zero():
    assert repaint(_pair(), share=0.0, rng=np.random.default_rng(0)) == _pair()


def test_half_of_the_plain_objects_and_no_others_are_repainted(repainted):
    things = [thing for example in repainted for thing in example.scene.things]
    plain = [thing for thing in things if thing.texture == "plain" and thing.shape != FRUIT]
    assert 0.44 < np.mean([thing.paint is not None for thing in plain]) < 0.56
    assert all(thing.paint is None or thing in plain for thing in things)


def test_the_image_shows_the_paint(repainted):
    for example in repainted[:200]:
        drawn = render(example.scene)
        for thing, mask in zip(example.scene.things, drawn.things, strict=True):
            if thing.shape != FRUIT and thing.texture == "plain":
                painted = (drawn.image[mask] == (thing.paint or COLOURS[thing.colour])).all(-1)
                assert painted.mean() > 0.3


def test_grading_takes_no_painted_object_for_a_held_out_combination(repainted):
    rng, seen = np.random.default_rng(1), set()
    for example in repainted:
        found = find_things(render(example.scene, rng=rng).image)[1]
        seen |= {(one.colour, one.shape) for one in found}
    assert len(seen) > 10
    assert not seen & HELD_OUT_PAIRS
