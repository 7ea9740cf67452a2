import numpy as np
import pytest

from diffusion_lens.toys.shapes.render import render, render_words, signed_distance, thing_mask
from diffusion_lens.toys.shapes.scenes import pose, sample_pair
from diffusion_lens.toys.shapes.world import BACKGROUNDS, COLOURS, SHAPES, Scene, Thing


def test_the_same_scene_and_seed_give_the_same_image():
    scene = sample_pair(np.random.default_rng(0))
    first, second = (render(scene, rng=np.random.default_rng(1)).image for _ in range(2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, render(scene, rng=np.random.default_rng(2)).image)


def test_masks_never_overlap_and_cover_the_image_with_the_background():
    rng = np.random.default_rng(0)
    for _ in range(50):
        drawn = render(sample_pair(rng))
        layers = np.concatenate([drawn.things, drawn.background[None]])
        assert (layers.sum(0) == 1).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_mask_is_where_the_colour_is(shape):
    scene = Scene(things=(Thing(shape=shape, colour="red"),), background="white")
    drawn = render(scene)
    far = np.linalg.norm(drawn.image.astype(float) - COLOURS["red"], axis=-1)
    near_white = np.linalg.norm(drawn.image.astype(float) - BACKGROUNDS["white"], axis=-1)
    assert np.array_equal(drawn.things[0], far < near_white)
    assert np.array_equal(drawn.things[0], thing_mask(scene.things[0]))


def test_a_square_has_the_area_that_its_sides_say():
    mask = signed_distance("square", x=16, y=16, radius=6 / 0.88) < 0
    assert mask.sum() == 12 * 12


def test_the_fruit_has_a_green_leaf_inside_its_mask():
    drawn = render(pose("a large orange", rng=np.random.default_rng(0)))
    assert drawn.leaf.sum() > 10
    assert not (drawn.leaf & ~drawn.things[0]).any()
    red, green, _ = drawn.image[drawn.leaf].mean(0)
    assert green > red


def test_textures_change_the_colours_and_not_the_mask():
    things = [
        Thing(shape="square", colour="blue", texture=t) for t in ("plain", "striped", "dotted")
    ]
    drawn = [render(Scene(things=(thing,), background="white")) for thing in things]
    assert all(np.array_equal(drawn[0].things, other.things) for other in drawn[1:])
    inside = [one.image[one.things[0]].mean() for one in drawn]
    assert inside[1] < inside[0] < inside[2]


def test_words_own_the_pixels_of_their_objects():
    scene = pose(
        "a striped red circle above a blue square on a gray background",
        rng=np.random.default_rng(0),
    )
    drawn, words = render(scene), render_words(scene)
    assert np.array_equal(words["red"], drawn.things[0])
    assert np.array_equal(words["square"], drawn.things[1])
    assert np.array_equal(words["gray"], drawn.background)
    assert "medium" not in words


def test_a_paint_is_drawn_in_place_of_the_colour_whose_word_then_owns_nothing():
    thing = Thing(shape="square", colour="blue", paint=(10, 200, 210))
    scene = Scene(things=(thing,), background="white")
    drawn, words = render(scene), render_words(scene)
    assert (drawn.image[16, 16] == (10, 200, 210)).all()
    assert "blue" not in words and np.array_equal(words["square"], drawn.things[0])


def test_an_unknown_shape_is_refused():
    with pytest.raises(ValueError, match="no shape 'star'; the world has circle"):
        signed_distance("star", x=0, y=0, radius=1)
