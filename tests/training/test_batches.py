from dataclasses import replace
from itertools import islice

import pytest

from diffusion_lens.toys.shapes.world import COLOURS, SHAPES, TEXTURES
from diffusion_lens.toys.tokenizers import UNKNOWN, caption_ids
from diffusion_lens.training.batches import batches
from diffusion_lens.training.config import load_config


def _ids(words):
    return {caption_ids(word, start=False)[0] for word in words}


@pytest.fixture
def config():
    recipe = load_config("shapes-mmdit")
    recipe = replace(recipe, batch=200, caption_drop=0.0, unknown_words=0.0)
    return replace(recipe, hidden_attributes=0.0, unnamed_colours=0.0)


def _seen(config):
    """Ids of the captions of one batch, one after the other."""
    (batch,) = islice(batches(config, start=0), 1)
    return batch.t5_ids.flatten().tolist()


def test_nothing_is_hidden_unasked(config):
    assert UNKNOWN not in _seen(config)


@pytest.mark.slow
def test_a_third_of_the_attributes_and_no_other_word_is_hidden(config):
    whole, hidden = _seen(config), _seen(replace(config, hidden_attributes=1.0))
    attributes = _ids((*COLOURS, *SHAPES, *TEXTURES))
    changed = [pair for pair in zip(whole, hidden, strict=True) if len(set(pair)) == 2]
    assert all(before in attributes and after == UNKNOWN for before, after in changed)
    said = sum(one in attributes for one in whole)
    assert 0.28 < len(changed) / said < 0.38


@pytest.mark.slow
def test_words_of_colours_alone_are_unknown_where_objects_are_painted(config):
    config = replace(config, single=1.0)
    (plain,), (painted,) = (
        islice(batches(one, start=0), 1) for one in (config, replace(config, unnamed_colours=1.0))
    )
    changed = plain.t5_ids != painted.t5_ids
    assert set(plain.t5_ids[changed].tolist()) <= _ids(COLOURS)
    assert set(painted.t5_ids[changed].tolist()) == {UNKNOWN}
    moved = (plain.images - painted.images).abs().amax((1, 2, 3)) > 0.2
    assert (moved[changed.any(1)]).all()
    assert changed.any(1).float().mean() > 0.3
