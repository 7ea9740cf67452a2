import numpy as np
import pytest

from diffusion_lens.toys.shapes.finding import fill_holes, find_background, find_things, patches
from diffusion_lens.toys.shapes.render import render
from diffusion_lens.toys.shapes.world import BACKGROUNDS, COLOURS, SHAPES, Scene, Thing


def _mask(*rows):
    return np.array([[cell == "#" for cell in row] for row in rows])


def test_patches_join_at_corners_and_come_largest_first():
    parts = patches(_mask("#...#", ".#...", "..#.."))
    assert [int(part.sum()) for part in parts] == [3, 1]


def test_holes_are_filled_and_bays_are_not():
    mask = _mask("####", "#..#", "####", "#..#")
    assert np.array_equal(fill_holes(mask), _mask("####", "####", "####", "#..#"))


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("colour", COLOURS)
def test_colour_and_background_are_read_off(background, colour):
    scene = Scene(things=(Thing(shape="square", colour=colour),), background=background)
    word, things = find_things(render(scene).image)
    assert word == background
    assert [thing.colour for thing in things] == [colour]


@pytest.mark.parametrize("texture", ["plain", "striped", "dotted"])
@pytest.mark.parametrize("shape", SHAPES)
def test_shape_texture_and_extent_are_read_off(shape, texture):
    truth = Thing(shape=shape, colour="blue", texture=texture, radius=6.4, x=15.3, y=16.8)
    (found,) = find_things(render(Scene(things=(truth,), background="white")).image)[1]
    assert (found.shape, found.texture) == (shape, texture)
    assert found.radius == pytest.approx(truth.radius, abs=0.5)
    assert (found.x, found.y) == (pytest.approx(truth.x, abs=0.8), pytest.approx(truth.y, abs=0.8))


def test_an_image_without_a_clear_background_has_none():
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert find_background(noise)[0] is None
    assert find_things(noise)[1] == []
