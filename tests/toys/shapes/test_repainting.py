from itertools import islice

import numpy as np
import pytest

from diffusion_lens.toys.shapes.finding import find_things
from diffusion_lens.toys.shapes.render import render
from diffusion_lens.toys.shapes.repainting import FROM_BACKGROUND, repaint, taken_for
from diffusion_lens.toys.shapes.sampling import Example, training_examples
from diffusion_lens.toys.shapes.world import (
    BACKGROUNDS,
    COLOURS,
    FRUIT,
    HELD_OUT_PAIRS,
    UNKNOWN_WORD,
    Scene,
    Thing,
)


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
    assert example.caption == f"a {UNKNOWN_WORD} cross left of an orange on a white background"
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


def test_a_paint_stands_out_and_has_not_the_held_out_hue(repainted):
    held_out = {shape: colour for colour, shape in HELD_OUT_PAIRS}
    for scene in (example.scene for example in repainted):
        for thing in (thing for thing in scene.things if thing.paint is not None):
            away = np.subtract(thing.paint, BACKGROUNDS[scene.background])
            assert np.linalg.norm(away) >= FROM_BACKGROUND
            assert not taken_for(thing.paint, held_out[thing.shape])


@pytest.mark.parametrize("colour", COLOURS)
def test_each_colour_is_taken_for_itself_alone(colour):
    assert [word for word in COLOURS if taken_for(COLOURS[colour], word)] == [colour]


@pytest.mark.parametrize(
    ("paint", "colour"),
    [
        ((108, 151, 21), "green"),
        ((100, 159, 7), "green"),
        ((10, 40, 10), "green"),
        ((119, 73, 62), "red"),
        ((200, 168, 2), "yellow"),
        ((72, 103, 40), "yellow"),
    ],
)
def test_what_a_person_or_the_grader_might_call_so_is_taken_for_it(paint, colour):
    assert taken_for(paint, colour)


@pytest.mark.parametrize("paint", [(0, 200, 210), (60, 0, 250), (70, 200, 60)])
def test_a_hue_near_another_colour_is_free(paint):
    assert not any(taken_for(paint, colour) for colour in ("red", "yellow"))


@pytest.mark.slow
def test_grading_takes_no_painted_object_for_a_held_out_combination(repainted):
    rng, seen = np.random.default_rng(1), set()
    for example in repainted:
        found = find_things(render(example.scene, rng=rng).image)[1]
        seen |= {(one.colour, one.shape) for one in found}
    assert len(seen) > 10
    assert not seen & HELD_OUT_PAIRS
