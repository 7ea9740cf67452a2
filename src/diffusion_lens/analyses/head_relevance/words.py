"""Concept words as the model reads them: encoded alone, projected to keys, drawn at random.

Source: Cross-Attention Head Position Patterns Can Align with Human Visual Concepts, arXiv
2412.02237, section 3.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_lens import HookedDiffusion
from diffusion_lens.authoring import (
    encoder_of,
    encoder_settings,
    encoding,
    text_context,
    text_keys,
)
from diffusion_lens.border import public
from diffusion_lens.errors import ConceptError, closest, listing

ENCODED_AT_ONCE = 32
CROSS_QUERIES = "cross_attn.img.hook_q"


def checked_concepts(concepts: Any) -> dict[str, tuple[str, ...]]:
    """Concepts with their words, if they can be told apart.

    Raises:
        ConceptError: If there are fewer than two, one has no name or no word, or a word is empty or
            repeated.
    """
    if not isinstance(concepts, Mapping):
        raise ConceptError(
            "concepts= is a mapping from each concept to its words, such as "
            f'{{"Colour": ["red", "blue"], "Shape": ["circle"]}}; got {type(concepts).__name__}'
        )
    if len(concepts) < 2:
        raise ConceptError(
            f"a vote needs two concepts or more to choose from, got {list(concepts)}; head "
            "relevance is always relative to the other concepts"
        )
    found: dict[str, tuple[str, ...]] = {}
    for name, words in concepts.items():
        if not isinstance(name, str) or not name.strip():
            raise ConceptError(f"a concept is called {name!r}; give it a name")
        listed = tuple(words) if isinstance(words, Iterable) else (words,)
        listed = (words,) if isinstance(words, str) else listed
        if not listed or not all(isinstance(word, str) and word.strip() for word in listed):
            raise ConceptError(
                f"concept {name!r} has the words {list(listed)}; give non-empty ones"
            )
        if len(set(listed)) < len(listed):
            raise ConceptError(f"concept {name!r} has a word twice: {list(listed)}")
        found[name] = listed
    return found


def concept_index(concept: str, concepts: Sequence[str]) -> int:
    """Place of a concept.

    Raises:
        ConceptError: If it is none of them; the message names the closest.
    """
    if concept not in concepts:
        near = closest(str(concept), concepts)
        hint = f" Closest: {near[0]!r}." if near else ""
        raise ConceptError(
            f"{concept!r} is none of the {len(concepts)} concepts.{hint} They are "
            f"{listing(concepts, most=40)}; a new concept needs a run of its own"
        )
    return list(concepts).index(concept)


@dataclass(frozen=True, eq=False)
class ConceptWords:
    """The words of all concepts as rows of text embeddings.

    Attributes:
        concepts: Concept to its words.
        embeddings: Rows of all words one after the other; row 0 is the start token, where the
            encoder has one.
        rows: For each concept, for each of its words, its rows.
        starts: Whether row 0 is a start token (CLIP has one, T5 has none).
    """

    concepts: Mapping[str, tuple[str, ...]]
    embeddings: Float[Tensor, "row *layer d_text"]
    rows: tuple[tuple[tuple[int, ...], ...], ...]
    starts: bool = True

    @classmethod
    @public
    def encode(
        cls,
        model: HookedDiffusion,
        concepts: Any,
        *,
        max_sequence_length: int | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> ConceptWords:
        """Encode every word alone with the pipeline's own text encoders.

        Args:
            model: The model.
            concepts: Concept to its words; a word may stand in several concepts.
            max_sequence_length: Padded length, where the pipeline has it; None is its default.
            settings: Further arguments of `encode_prompt`, as the run has them; others are left
                out.

        Raises:
            ConceptError: On bad concepts, and for a bare denoiser, which has no text encoder.
        """
        checked = checked_concepts(concepts)
        if model.pipe is None:
            raise ConceptError(
                "a bare denoiser has no text encoder to encode concept words with; wrap the "
                "pipeline, or make `ConceptWords` from embeddings"
            )
        words = list(dict.fromkeys(word for some in checked.values() for word in some))
        encoded, start, begins = _encode(model, words, max_sequence_length, settings or {})
        places: dict[str, tuple[int, ...]] = {}
        at = 1
        for word, rows in zip(words, encoded, strict=True):
            places[word] = tuple(range(at, at + len(rows)))
            at += len(rows)
        return cls(
            checked,
            torch.cat([start, *encoded]),
            tuple(tuple(places[word] for word in some) for some in checked.values()),
            begins,
        )

    def draw(
        self, generator: torch.Generator, *, include_start_token: bool
    ) -> tuple[list[int], list[int]]:
        """One word of each concept, drawn independently and uniformly.

        Args:
            generator: Where the random numbers come from.
            include_start_token: Put the start token before the first word.

        Returns:
            The rows in concept order, and for each row the number of its concept (0 for the start
            token, which `shares` leaves out).
        """
        rows, owners = ([0], [0]) if include_start_token else ([], [])
        for number, words in enumerate(self.rows):
            chosen = words[int(torch.randint(len(words), (), generator=generator))]
            rows += chosen
            owners += [number] * len(chosen)
        return rows, owners


@public
def cross_attention_keys(
    model: HookedDiffusion, embeddings: Float[Tensor, "row d_text"]
) -> dict[int, Float[Tensor, "head row d_head"]]:
    """Keys of text rows in every cross-attention layer, by the layer's own projection and norm.

    Args:
        model: A model with cross-attention.
        embeddings: Text embeddings.

    Returns:
        By block; multiplied by the layer's factor on scores (1 / sqrt of d_head).

    Raises:
        UnsupportedModelError: If it is not described how the model's text gets there.
    """
    keys = {}
    with torch.no_grad():
        given = embeddings.to(model.device, model.dtype)
        context = text_context(model.denoiser, model.spec, given)
    for point in model.points.values():
        if point.block is None or not point.name.endswith(CROSS_QUERIES):
            continue
        attention: Any = model.denoiser.get_submodule(point.module)
        split = text_keys(attention, context)
        wide = torch.promote_types(split.dtype, torch.float32)
        scale = getattr(attention, "scale", split.shape[-1] ** -0.5)
        keys[point.block] = (split.to(wide) * scale).contiguous()
    return keys


def _encode(
    model: HookedDiffusion, words: Sequence[str], length: int | None, settings: Mapping[str, Any]
) -> tuple[list[Tensor], Tensor, bool]:
    """The rows of each word, the first row of all, and whether that is a start token."""
    pipe: Any = encoding(model.pipe, "encoding words")
    parameters = inspect.signature(encoder_of(pipe)).parameters
    padded = length if "max_sequence_length" in parameters else None
    given = encoder_settings(pipe, model.device, padded, settings)
    # Registers stand before the text in its stream, and are not among what is encoded.
    ahead = model.points["hook_text_emb"].skipped
    # Where padding in front depends on the longest of a batch, each is encoded alone.
    alone = any(part.before is not None for part in model.spec.text_parts)
    found: list[Tensor] = []
    start, begins = None, False
    at_once = 1 if alone else ENCODED_AT_ONCE
    for first in range(0, len(words), at_once):
        some = list(words[first : first + at_once])
        with torch.no_grad():
            # A list of its own: Z-Image writes chats into it.
            encoded = encoder_of(pipe)(pipe, list(some), **given)[0]
        for word, rows in zip(some, encoded, strict=True):
            places = [at - ahead for at in model.words(word, word, max_sequence_length=length)]
            if start is None:
                start, begins = rows[:1], 0 not in places
            found.append(rows[places])
    assert start is not None
    return found, start, begins
