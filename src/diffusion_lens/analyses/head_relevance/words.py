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
from diffusion_lens.authoring import encoding, unobserved
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
        embeddings: Rows of all words one after the other; row 0 is the start token.
        rows: For each concept, for each of its words, its rows.
    """

    concepts: Mapping[str, tuple[str, ...]]
    embeddings: Float[Tensor, "row d_text"]
    rows: tuple[tuple[tuple[int, ...], ...], ...]

    @classmethod
    @public
    def encode(
        cls,
        model: HookedDiffusion,
        concepts: Any,
        *,
        max_sequence_length: int | None = None,
    ) -> ConceptWords:
        """Encode every word alone with the pipeline's own text encoders.

        Args:
            model: The model.
            concepts: Concept to its words; a word may stand in several concepts.
            max_sequence_length: Padded length, where the pipeline has it; None is its default.

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
        encoded, start = _encode(model, words, max_sequence_length)
        places: dict[str, tuple[int, ...]] = {}
        at = 1
        for word, rows in zip(words, encoded, strict=True):
            places[word] = tuple(range(at, at + len(rows)))
            at += len(rows)
        return cls(
            checked,
            torch.cat([start, *encoded]),
            tuple(tuple(places[word] for word in some) for some in checked.values()),
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
    """Keys of text rows in every cross-attention layer, by the layer's own projection.

    Args:
        model: A U-Net.
        embeddings: Text embeddings.

    Returns:
        By block; multiplied by the layer's factor on scores (1 / sqrt of d_head).
    """
    keys = {}
    for point in model.points.values():
        if point.block is None or not point.name.endswith(CROSS_QUERIES):
            continue
        attention: Any = model.denoiser.get_submodule(point.module)
        with torch.no_grad():
            projected = attention.to_k(embeddings.to(model.device, model.dtype))
        split = projected.unflatten(-1, (attention.heads, -1)).transpose(0, 1)
        wide = torch.promote_types(split.dtype, torch.float32)
        keys[point.block] = (split.to(wide) * attention.scale).contiguous()
    return keys


def _encode(
    model: HookedDiffusion, words: Sequence[str], length: int | None
) -> tuple[list[Tensor], Tensor]:
    """The rows of each word, and the first row of all (the start token)."""
    pipe = encoding(model.pipe, "encoding words")
    parameters = inspect.signature(type(pipe).encode_prompt).parameters
    settings: dict[str, Any] = {"device": model.device, "num_images_per_prompt": 1}
    if "do_classifier_free_guidance" in parameters:
        settings["do_classifier_free_guidance"] = False
    settings |= {name: None for name in ("prompt_2", "prompt_3") if name in parameters}
    if length is not None and "max_sequence_length" in parameters:
        settings["max_sequence_length"] = length
    found: list[Tensor] = []
    start = None
    for first in range(0, len(words), ENCODED_AT_ONCE):
        some = list(words[first : first + ENCODED_AT_ONCE])
        with torch.no_grad():
            # The class's method may be followed, and this is no prompt of a run.
            encoded = unobserved(type(pipe), "encode_prompt")(pipe, some, **settings)[0]
        start = encoded[0, :1] if start is None else start
        found += [
            rows[list(model.words(word, word))] for word, rows in zip(some, encoded, strict=True)
        ]
    assert start is not None
    return found, start
