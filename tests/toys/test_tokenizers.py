from itertools import islice

import pytest

from diffusion_lens.toys.shapes.sampling import training_examples
from diffusion_lens.toys.tokenizers import (
    MAX_LENGTH,
    TOKEN_IDS,
    UNKNOWN,
    VOCABULARY,
    caption_ids,
    clip_tokenizer,
    t5_tokenizer,
)

CAPTIONS = [
    "",
    "red",
    "a ? circle",
    "? ?",
    *(example.caption for example in islice(training_examples(0), 100)),
]


@pytest.mark.parametrize(("make", "start"), [(clip_tokenizer, True), (t5_tokenizer, False)])
def test_training_ids_are_what_the_tokenizer_gives(make, start):
    tokenizer = make()
    for caption in CAPTIONS:
        ids = tokenizer(caption, padding="max_length", max_length=MAX_LENGTH).input_ids
        assert ids == caption_ids(caption, start=start)


@pytest.mark.parametrize("make", [clip_tokenizer, t5_tokenizer])
def test_tokenizers_survive_saving(make, tmp_path):
    tokenizer = make()
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    assert again("a red circle").input_ids == tokenizer("a red circle").input_ids


def test_each_word_is_one_token_and_foreign_words_are_not_in_the_vocabulary():
    assert sorted(TOKEN_IDS.values()) == list(range(4, VOCABULARY))
    assert UNKNOWN in t5_tokenizer()("crimson").input_ids
    ids = clip_tokenizer()("bed", add_special_tokens=False).input_ids
    assert all(each == UNKNOWN or each >= VOCABULARY for each in ids)


def test_captions_that_are_too_long_are_refused():
    with pytest.raises(ValueError, match="has 15 words; the toy models read 14"):
        caption_ids("red " * 15, start=True)
