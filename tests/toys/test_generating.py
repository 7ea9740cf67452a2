import warnings

import numpy as np
import pytest

from diffusion_lens import HookedDiffusion, toys
from diffusion_lens.errors import RunError

CAPTION = "a red circle on a white background"


@pytest.fixture(scope="module")
def model():
    return HookedDiffusion.toy("shapes-unet")


def test_one_text_is_one_caption(model):
    one = toys.generate(model.pipe, CAPTION, steps=2)
    assert one.shape == (1, 32, 32, 3) and one.dtype == np.uint8
    assert np.array_equal(one, toys.generate(model.pipe, [CAPTION], steps=2))


def test_a_hooked_model_draws_what_its_pipeline_draws(model):
    assert toys.call_defaults(model) == toys.call_defaults(model.pipe)
    through = toys.generate(model, [CAPTION] * 2, steps=2)
    assert np.array_equal(through, toys.generate(model.pipe, [CAPTION] * 2, steps=2))


def test_a_caption_has_its_noise_whatever_the_batch(model):
    together = toys.generate(model, [CAPTION] * 3, steps=2)
    apart = toys.generate(model, [CAPTION] * 3, steps=2, batch=2)
    assert np.abs(together.astype(int) - apart).max() <= 1


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("reed", "Closest: 'red'"),
        ("grey", "Closest: 'gr"),
        ("Red", "Closest: 'red'"),
        ("x", "It is"),
    ],
)
def test_a_word_that_the_models_never_saw_is_an_unknown_one(model, word, hint):
    with pytest.warns(UserWarning, match=f"'{word}' in .* is no word of the shapes world. {hint}"):
        drawn = toys.generate(model, f"a {word} circle", steps=2)
    assert np.array_equal(drawn, toys.generate(model, "a ? circle", steps=2))


@pytest.mark.slow
@pytest.mark.parametrize("name", toys.names())
def test_what_stands_behind_a_long_unknown_word_is_read(name):
    pipe = toys.load(name)
    start = "a turquoise circle above a turquoise square on a"
    captions = [f"{start} {colour} background" for colour in ("white", "black")]
    with pytest.warns(UserWarning, match="'turquoise'"):
        white, black = toys.generate(pipe, captions, steps=8)
    assert white[0, 0].mean() > 150 > 100 > black[0, 0].mean()


def test_known_words_are_drawn_without_a_warning(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        toys.generate(model, ["", "orange", "a ? circle", CAPTION], steps=1)


def test_what_cannot_be_drawn_is_refused(model):
    with pytest.raises(RunError, match="0 captions, 50 at a time, in 20 steps"):
        toys.generate(model, [])
    with pytest.raises(RunError, match="1 captions, 50 at a time, in 0 steps"):
        toys.generate(model, CAPTION, steps=0)
    with pytest.raises(RunError, match="1 captions, 0 at a time"):
        toys.generate(model, CAPTION, batch=0)
    with pytest.raises(RunError, match="HookedDiffusion draws nothing by itself"):
        toys.generate(HookedDiffusion(toys.load("shapes-unet").unet), CAPTION)
    with pytest.raises(ValueError, match="has 20 words; the toy models read 14"):
        toys.generate(model, " ".join(["red"] * 20))
