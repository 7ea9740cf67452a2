import numpy as np
import pytest

from diffusion_lens.toys.shapes.captions import (
    Caption,
    CaptionError,
    ThingWords,
    read_caption,
    write_caption,
)
from diffusion_lens.toys.shapes.sampling import full_caption
from diffusion_lens.toys.shapes.scenes import sample_pair, sample_single


@pytest.mark.parametrize("sample", [sample_single, sample_pair])
def test_writing_what_was_read_gives_the_caption_back(sample):
    rng = np.random.default_rng(0)
    for _ in range(200):
        text = full_caption(sample(rng), rng=rng)
        assert write_caption(read_caption(text)) == text


def test_a_full_caption_is_read_word_by_word():
    said = read_caption("a large striped red circle left of an orange on a pink background")
    assert said.things == (
        ThingWords(size="large", texture="striped", colour="red", shape="circle"),
        ThingWords(shape="orange"),
    )
    assert (said.relation, said.background) == ("left of", "pink")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("red", ThingWords(colour="red")),
        ("a circle", ThingWords(shape="circle")),
        ("striped", ThingWords(texture="striped")),
        ("large", ThingWords(size="large")),
        ("an orange", ThingWords(shape="orange")),
        ("a small orange", ThingWords(size="small", shape="orange")),
        ("an orange square", ThingWords(colour="orange", shape="square")),
        ("orange", ThingWords(colour="orange")),
    ],
)
def test_fragments_say_one_thing(text, words):
    assert read_caption(text) == Caption(things=(words,))


def test_only_the_bare_word_orange_is_ambiguous():
    texts = ("orange", "an orange", "an orange circle", "red")
    assert [text for text in texts if read_caption(text).ambiguous] == ["orange"]


def test_relation_words_alone_say_an_axis():
    assert read_caption("above").axis == read_caption("below").axis == "vertical"
    assert read_caption("left").axis == read_caption("left of").axis == "horizontal"


def test_a_place_word_after_a_single_object_is_its_place():
    said = read_caption("a small red circle left")
    assert said.place == "left" and said.relation is None and said.axis is None
    assert said.things == (ThingWords(size="small", colour="red", shape="circle"),)
    assert write_caption(said) == "a small red circle left"


def test_backgrounds_alone_are_understood():
    for text in ("black", "black background", "on a black background"):
        assert read_caption(text) == Caption(background="black")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a zzz circle",
            "'zzz' in .* is no word of the shapes world\\. It has, in lower case, a, an",
        ),
        ("a reed circle", "'reed' in .* Closest: 'red'"),
        ("A red circle", "'A' in .* Closest: 'a'"),
        ("a red circle.", "'circle.' in .* Closest: 'circle'"),
        ("a cross above a cross above a cross", "'above' does not describe .* at most two objects"),
        ("a red blue circle", "two words of colour: 'red' and 'blue'"),
        ("a circle on a red background", "names no background; there are white, black"),
        ("a of circle", "'of' does not describe an object"),
        ("a", "an article without a noun"),
    ],
)
def test_what_is_no_caption_is_refused(text, message):
    with pytest.raises(CaptionError, match=message):
        read_caption(text)
