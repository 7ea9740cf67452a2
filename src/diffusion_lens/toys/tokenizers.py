"""Real CLIP and T5 tokenizers whose vocabulary is the shapes world's words, one token each."""

from typing import TYPE_CHECKING, Any

from diffusion_lens.toys.shapes.world import WORDS

if TYPE_CHECKING:
    from transformers import CLIPTokenizer, T5Tokenizer

MAX_LENGTH = 16
"""Tokens per caption: the longest caption has 14 words, CLIP adds two marks, T5 adds one."""

PAD, END, UNKNOWN, START = 0, 1, 2, 3
"""Token ids of the marks, the same in both tokenizers."""

TOKEN_IDS = {word: place for place, word in enumerate(WORDS, start=4)}
"""Token id of each word, the same in both tokenizers."""

VOCABULARY = 4 + len(WORDS)
"""Number of token ids that training sees: the marks and the words."""


def caption_ids(caption: str, *, start: bool) -> list[int]:
    """Token ids of a caption, padded to `MAX_LENGTH`, without building a tokenizer.

    Args:
        caption: Words of the world.
        start: True for what the CLIP tokenizer gives, which marks the start; False for T5.

    Returns:
        `MAX_LENGTH` ids.

    Raises:
        ValueError: If the caption is too long.
    """
    words = [TOKEN_IDS.get(word, UNKNOWN) for word in caption.split()]
    ids = [START] * start + [*words, END]
    if len(ids) > MAX_LENGTH:
        most = MAX_LENGTH - len(ids) + len(words)
        raise ValueError(f"{caption!r} has {len(words)} words; the toy models read {most}")
    return ids + [PAD] * (MAX_LENGTH - len(ids))


def clip_tokenizer() -> "CLIPTokenizer":
    """The CLIP tokenizer: byte-pair merges that rebuild each word of the world into one token.

    Other words fall into letters and fragments, whose ids lie above `VOCABULARY`.

    Returns:
        A tokenizer that `save_pretrained` writes and transformers loads.
    """
    from transformers import CLIPTokenizer

    vocabulary = {"<pad>": PAD, "<|endoftext|>": END, "<unk>": UNKNOWN, "<|startoftext|>": START}
    vocabulary |= {f"{word}</w>": place for word, place in TOKEN_IDS.items()}
    merges: dict[Any, None] = {}
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        for part in parts:
            vocabulary.setdefault(part, len(vocabulary))
        while len(parts) > 1:
            *parts, left, right = parts
            merges[left, right] = None
            parts.append(left + right)
            vocabulary.setdefault(left + right, len(vocabulary))
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=list(merges),
        unk_token="<unk>",
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<pad>",
        model_max_length=MAX_LENGTH,
    )


def t5_tokenizer() -> "T5Tokenizer":
    """The T5 tokenizer: a unigram vocabulary of whole words; every other word is unknown.

    Returns:
        A tokenizer that `save_pretrained` writes and transformers loads.
    """
    from transformers import T5Tokenizer

    marks = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("<s>", 0.0)]
    words = [(f"\N{LOWER ONE EIGHTH BLOCK}{word}", -1.0) for word in WORDS]
    return T5Tokenizer(vocab=marks + words, extra_ids=0, model_max_length=MAX_LENGTH)
