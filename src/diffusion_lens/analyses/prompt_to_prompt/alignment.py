"""Which tokens of a source prompt stand for those of a target prompt.

Source: Hertz et al., Prompt-to-Prompt Image Editing with Cross Attention Control, arXiv 2208.01626,
section 3.2, and its released code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_lens.errors import WordError

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Alignment:
    """How the columns of a target's pattern are made.

    Column `j` of the edited pattern is `source @ mapper[:, j] + own[j] * target[:, j]`.

    Attributes:
        mapper: Weights of the source's tokens, axes source token, target token.
        own: Weight of the target's own column: 1 for tokens that the source does not have, else 0.
        edited: The target's tokens of words that differ.
        source_edited: The source's.
    """

    mapper: Float[Tensor, "source target"]
    own: Float[Tensor, " target"]
    edited: Tokens = ()
    source_edited: Tokens = ()

    def join(self, other: Alignment) -> Alignment:
        """Two stretches of the text stream, one after the other."""
        start = len(self.own)
        return Alignment(
            torch.block_diag(self.mapper, other.mapper),
            torch.cat([self.own, other.own]),
            (*self.edited, *(start + token for token in other.edited)),
            (*self.source_edited, *(start + token for token in other.source_edited)),
        )


def identity(length: int) -> Alignment:
    """Every token stands for itself."""
    return Alignment(torch.eye(length), torch.zeros(length))


def changed_words(source: str, target: str) -> list[int]:
    """Indices of the space-separated words that differ.

    Raises:
        WordError: If the prompts have different numbers of words.
    """
    ours, theirs = source.split(), target.split()
    if len(ours) != len(theirs):
        first = next(
            (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
            min(len(ours), len(theirs)),
        )
        shown = [words[first] if first < len(words) else None for words in (ours, theirs)]
        pair = " and ".join("nothing" if word is None else repr(word) for word in shown)
        raise WordError(
            f"words are replaced one by one, but {source!r} has {len(ours)} and {target!r} has "
            f"{len(theirs)}; they first differ at word {first}: {pair}. Give edit='refine', which "
            "aligns prompts of any length"
        )
    return [i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]


def word_tokens(text: str, spans: Sequence[tuple[int, int]]) -> list[Tokens]:
    """For each space-separated word the tokens that cover it.

    Args:
        text: The prompt as the tokenizer got it.
        spans: First character of each token, and the one after the last.

    Raises:
        WordError: If a word has no token, since the tokenizer cut it off.
    """
    found = []
    for word in re.finditer(r"\S+", text):
        tokens = tuple(
            at
            for at, (start, end) in enumerate(spans)
            if text[start:end].strip() and start < word.end() and word.start() < end
        )
        if not tokens:
            raise WordError(
                f"{word.group()!r} of {text!r} lies behind the last token that the tokenizer "
                "keeps; shorten the prompt"
            )
        found.append(tokens)
    return found


def replacement(source: Sequence[Tokens], target: Sequence[Tokens], length: int) -> Alignment:
    """Words replaced one by one.

    A changed word's tokens are matched one to one where there are as many, else each of the
    source's gives an equal share to each of the target's. Tokens between changed words are matched
    in sequence. All as in the released code: behind the last changed word token `j` stands for
    token `j`, even where the counts differ and the rest of the prompts is shifted; where the source
    has more tokens, as many of the last columns stay empty.

    Args:
        source: The tokens of the source's changed words, in order.
        target: Those of the target's.
        length: Number of tokens.
    """
    mapper = torch.zeros(length, length)
    i = j = 0
    for ours, theirs in zip(source, target, strict=True):
        while i < ours[0]:
            mapper[i, j] = 1
            i, j = i + 1, j + 1
        if len(ours) == len(theirs):
            mapper[list(ours), list(theirs)] = 1
        else:
            for token in theirs:
                mapper[list(ours), token] = 1 / len(theirs)
        i, j = i + len(ours), j + len(theirs)
    tail = torch.arange(j, length - max(0, i - j))
    mapper[tail, tail] = 1
    edited = tuple(token for word in target for token in word)
    replaced = tuple(token for word in source for token in word)
    return Alignment(mapper, torch.zeros(length), edited, replaced)


def refinement(source: Sequence[int], target: Sequence[int], length: int) -> Alignment:
    """Prompts of different lengths: tokens in common keep the source's attention.

    Args:
        source: Token ids of the source, start and end tokens among them.
        target: Those of the target.
        length: Number of tokens; those behind the target's stand for themselves.
    """
    mapper, own = torch.zeros(length, length), torch.zeros(length)
    pairs = needleman_wunsch(source, target)
    for token, partner in enumerate(pairs):
        if partner is None:
            own[token] = 1
        else:
            mapper[partner, token] = 1
    tail = torch.arange(len(target), length)
    mapper[tail, tail] = 1
    edited = tuple(token for token, partner in enumerate(pairs) if partner is None)
    gone = tuple(token for token in range(len(source)) if token not in pairs)
    return Alignment(mapper, own, edited, gone)


def needleman_wunsch(source: Sequence[int], target: Sequence[int]) -> list[int | None]:
    """For each target token the source token that it is aligned with, or None.

    A gap scores 0, a match 1 and a mismatch -1. Among alignments of equal score the released code's
    is taken, which, from the end, prefers to leave a target token alone, then a source token.
    """
    rows, columns = len(source), len(target)
    best = [[0] * (columns + 1) for _ in range(rows + 1)]
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            diagonal = best[i - 1][j - 1] + (1 if source[i - 1] == target[j - 1] else -1)
            best[i][j] = max(best[i][j - 1], best[i - 1][j], diagonal)
    pairs: list[int | None] = [None] * columns
    i, j = rows, columns
    while j > 0:
        if i == 0 or best[i][j] == best[i][j - 1]:
            j -= 1
        elif best[i][j] == best[i - 1][j]:
            i -= 1
        else:
            i, j = i - 1, j - 1
            pairs[j] = i
    return pairs
