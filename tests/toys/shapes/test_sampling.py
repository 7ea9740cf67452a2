from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from diffusion_lens.toys.shapes.captions import read_caption
from diffusion_lens.toys.shapes.sampling import (
    exchangeable,
    held_out,
    needs_binding,
    sample_example,
    training_examples,
)
from diffusion_lens.toys.shapes.world import FRUIT, HELD_OUT_PAIRS, WORDS, Scene, Thing


def test_the_stream_is_a_function_of_its_seed():
    first, second = (list(islice(training_examples(3), 50)) for _ in range(2))
    assert first == second
    assert first != list(islice(training_examples(4), 50))


@pytest.mark.slow
def test_training_never_sees_a_held_out_pair():
    for example in islice(training_examples(0), 3000):
        assert not HELD_OUT_PAIRS & {(thing.colour, thing.shape) for thing in example.scene.things}


@pytest.mark.slow
def test_a_share_of_full_captions_is_held_out_and_the_choice_is_stable():
    rng = np.random.default_rng(0)
    full = [e for e in (sample_example(rng) for _ in range(4000)) if " on a " in e.caption]
    seen = [e for e in full if not _new(e)]
    assert 0.10 < np.mean([held_out(e) for e in seen]) < 0.20
    assert all(held_out(e) == held_out(replace(e)) for e in full)


def _new(example):
    return any((thing.colour, thing.shape) in HELD_OUT_PAIRS for thing in example.scene.things)


@pytest.mark.slow
def test_every_word_occurs_and_single_words_occur_alone():
    captions = [example.caption for example in islice(training_examples(0), 4000)]
    assert {word for caption in captions for word in caption.split()} == set(WORDS)
    assert {"red", "circle", "striped", "orange", "above", "large", "black"} <= set(captions)


def test_the_share_of_single_objects_is_what_was_asked_for():
    examples = list(islice(training_examples(0, single=0.8), 1000))
    assert 0.75 < np.mean([len(e.scene.things) == 1 for e in examples]) < 0.90


def test_every_caption_is_in_the_grammar():
    for example in islice(training_examples(1), 1000):
        read_caption(example.caption)


def _exchanged(scene):
    """The pairs of colour and shape if the two objects exchanged their colours."""
    first, second = scene.things
    return {(first.colour, second.shape), (second.colour, first.shape)}


def _pairs_without_fruit(**settings):
    scenes = [e.scene for e in islice(training_examples(0, single=0.2, **settings), 1500)]
    pairs = [scene for scene in scenes if len(scene.things) == 2]
    return [scene for scene in pairs if FRUIT not in {thing.shape for thing in scene.things}]


@pytest.mark.slow
def test_colours_of_exchangeable_pairs_can_be_exchanged():
    without = [bool(_exchanged(scene) & HELD_OUT_PAIRS) for scene in _pairs_without_fruit()]
    assert 0.2 < np.mean(without) < 0.5
    pairs = _pairs_without_fruit(only_exchangeable=True)
    assert len(pairs) > 500
    assert not any(_exchanged(scene) & HELD_OUT_PAIRS for scene in pairs)
    assert len({(thing.colour, thing.shape) for scene in pairs for thing in scene.things}) == 16


def _scene(*things):
    held = tuple(Thing(colour=colour, shape=shape) for colour, shape in things)
    return Scene(things=held, background="white")


@pytest.mark.parametrize(
    ("things", "expected"),
    [
        ([("blue", "square")], (True, False)),
        ([("orange", FRUIT), ("blue", "square")], (True, False)),
        ([("red", "square"), ("blue", "square")], (True, False)),
        ([("red", "circle"), ("red", "square")], (True, False)),
        ([("orange", "circle"), ("red", "square")], (True, True)),
        ([("red", "square"), ("blue", "triangle")], (False, True)),
    ],
)
def test_what_can_be_exchanged_and_what_needs_binding(things, expected):
    scene = _scene(*things)
    assert (exchangeable(scene), needs_binding(scene)) == expected


@pytest.mark.slow
def test_easy_pairs_are_thinned_and_single_objects_are_not():
    def scenes(**settings):
        return [e.scene for e in islice(training_examples(0, **settings), 2000)]

    def count(easy, found):
        pairs = [scene for scene in found if len(scene.things) == 2]
        return sum(needs_binding(scene) != easy for scene in pairs)

    plain, thinned = scenes(), scenes(easy_pairs=0.25)
    assert count(True, thinned) / count(False, thinned) == pytest.approx(
        0.25 * count(True, plain) / count(False, plain), rel=0.25
    )
    alone = [sum(len(scene.things) == 1 for scene in found) for found in (plain, thinned)]
    pairs = [count(False, found) for found in (plain, thinned)]
    assert alone[1] / pairs[1] == pytest.approx(alone[0] / pairs[0], rel=0.15)
    assert count(True, scenes(easy_pairs=0.0)) == 0


def test_the_settings_left_alone_give_the_stream_without_them():
    plain = list(islice(training_examples(5), 300))
    assert plain == list(islice(training_examples(5, only_exchangeable=False, easy_pairs=1.0), 300))
    rng = np.random.default_rng(5)
    drawn = (sample_example(rng) for _ in range(1000))
    assert plain == list(islice((one for one in drawn if not held_out(one)), 300))
