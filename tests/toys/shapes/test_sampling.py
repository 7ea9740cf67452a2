from dataclasses import replace
from itertools import islice

import numpy as np

from diffusion_lens.toys.shapes.captions import read_caption
from diffusion_lens.toys.shapes.sampling import (
    held_out,
    needs_binding,
    sample_example,
    training_examples,
)
from diffusion_lens.toys.shapes.world import FRUIT, HELD_OUT_PAIRS, WORDS


def test_the_stream_is_a_function_of_its_seed():
    first, second = (list(islice(training_examples(3), 50)) for _ in range(2))
    assert first == second
    assert first != list(islice(training_examples(4), 50))


def test_training_never_sees_a_held_out_pair():
    for example in islice(training_examples(0), 3000):
        assert not HELD_OUT_PAIRS & {(thing.colour, thing.shape) for thing in example.scene.things}


def test_a_share_of_full_captions_is_held_out_and_the_choice_is_stable():
    rng = np.random.default_rng(0)
    full = [e for e in (sample_example(rng) for _ in range(4000)) if " on a " in e.caption]
    seen = [e for e in full if not _new(e)]
    assert 0.10 < np.mean([held_out(e) for e in seen]) < 0.20
    assert all(held_out(e) == held_out(replace(e)) for e in full)


def _new(example):
    return any((thing.colour, thing.shape) in HELD_OUT_PAIRS for thing in example.scene.things)


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


def test_colours_of_exchangeable_pairs_can_be_exchanged():
    without = [bool(_exchanged(scene) & HELD_OUT_PAIRS) for scene in _pairs_without_fruit()]
    assert 0.2 < np.mean(without) < 0.5
    pairs = _pairs_without_fruit(only_exchangeable=True)
    assert len(pairs) > 500
    assert not any(_exchanged(scene) & HELD_OUT_PAIRS for scene in pairs)
    assert len({(thing.colour, thing.shape) for scene in pairs for thing in scene.things}) == 16


def test_easy_pairs_are_thinned():
    def share(**settings):
        scenes = [e.scene for e in islice(training_examples(0, single=0.0, **settings), 1000)]
        return np.mean([needs_binding(scene) for scene in scenes])

    assert share(easy_pairs=0.25) > share() + 0.2
    assert share(easy_pairs=0.0) == 1.0
