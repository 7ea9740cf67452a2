"""Concepts as rows of text embeddings, by the pipeline's own text encoder."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion_lens.architectures.spec import TextPart
from diffusion_lens.engine.observing import unobserved
from diffusion_lens.engine.words import PromptTokens, tokenizer_of, word_tokens
from diffusion_lens.errors import ConceptError

ENCODING = ("text_encoder_out_layers", "clip_skip")
"""Settings of a run that say how its prompts are encoded; concepts are encoded in the same way."""


def encode_concepts(
    pipe: Any,
    parts: Sequence[TextPart],
    concepts: Sequence[str],
    *,
    first: bool = False,
    row: int | None = None,
    device: torch.device,
    max_sequence_length: int | None = None,
    ahead: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> tuple[Tensor, Mapping[str, slice]]:
    """Encode each concept alone and keep the rows of its tokens.

    Args:
        pipe: The pipeline.
        parts: How its tokenizers fill the text stream.
        concepts: Words or phrases.
        first: Keep the first token of each only.
        row: Keep this row of each text in the place of the concept's tokens, whatever token of the
            template it is; negative counts from the end.
        device: Where to encode.
        max_sequence_length: Padded length, where the pipeline has it; padding is part of what an
            encoder without a mask sees. None is the pipeline's default.
        ahead: How many tokens the denoiser itself puts before the text (registers).
        settings: Further arguments of `encode_prompt`.

    Returns:
        Embeddings with axes batch (of 1), concept, d_text (Krea 2: and layer before it); and each
        concept's rows.

    Raises:
        ConceptError: If a concept is empty, is given twice, is read like another, or has more
            tokens than the encoder takes.
    """
    _refuse_bad(concepts)
    given = encoder_settings(pipe, device, max_sequence_length, settings)
    length = given.get("max_sequence_length")
    rows: dict[str, slice] = {}
    found: list[Tensor] = []
    for concept in concepts:
        _refuse_long(pipe, parts, concept, length)
        embeddings = _encode(pipe, concept, given)
        if row is not None:
            kept = (_row_of(embeddings, row),)
        else:
            tokens = word_tokens(pipe, tuple(parts), concept, concept, max_length=length)
            kept = tuple(at - ahead for at in (tokens[:1] if first else tokens))
        start = sum(len(part) for part in found)
        found.append(embeddings[list(kept)])
        _refuse_alike(pipe, concept, list(rows), found)
        rows[concept] = slice(start, start + len(kept))
    return torch.cat(found)[None], rows


def encode_together(
    pipe: Any,
    parts: Sequence[TextPart],
    concepts: Sequence[str],
    *,
    device: torch.device,
    max_sequence_length: int | None = None,
    ahead: int = 0,
    settings: Mapping[str, Any] | None = None,
) -> tuple[Tensor, Mapping[str, slice]]:
    """Encode all concepts as one prompt, joined by spaces, so that each depends on the others.

    Kept are the tokens of the first tokenizer from the beginning to the last concept. A start token
    is among them: it belongs to no concept, but concepts attend to it.

    Args:
        pipe: The pipeline.
        parts: How its tokenizers fill the text stream.
        concepts: Words or phrases.
        device: Where to encode.
        max_sequence_length: As for `encode_concepts`.
        ahead: Likewise.
        settings: Likewise.

    Returns:
        As for `encode_concepts`.

    Raises:
        ConceptError: Likewise.

    Source: the release of ConceptAttention for SD3. Differs: a concept of several tokens keeps all
    of them, where the release takes it for several concepts.
    """
    _refuse_bad(concepts)
    given = encoder_settings(pipe, device, max_sequence_length, settings)
    prompt = " ".join(concepts)
    length = given.get("max_sequence_length")
    _refuse_long(pipe, parts, prompt, length)
    tokens = PromptTokens.of(pipe, tuple(parts[:1]), prompt, max_length=length)
    rows: dict[str, slice] = {}
    start = 0
    for concept in concepts:
        stop = start + len(concept)
        own = [
            position - ahead
            for position, (first, last) in zip(tokens.positions, tokens.spans, strict=True)
            if first < stop and last > start and prompt[max(first, start) : last].strip()
        ]
        rows[concept] = slice(own[0], own[-1] + 1)
        start = stop + 1
    return _encode(pipe, prompt, given)[: rows[concepts[-1]].stop][None], rows


def pooled_of(pipe: Any, concepts: Sequence[str], *, device: torch.device) -> Tensor:
    """The pooled embedding of all concepts joined by spaces, axes batch (of 1), d_pooled."""
    settings = encoder_settings(pipe, device, None)
    with torch.no_grad():
        encoded = encoder_of(pipe)(pipe, " ".join(concepts), **settings)
    return next(part for part in encoded[1:] if isinstance(part, Tensor) and part.ndim == 2)


def _encode(pipe: Any, concept: str, settings: Mapping[str, Any]) -> Tensor:
    """Embeddings of one concept, axes pos, d_text."""
    # The class's method may be followed, and this is no prompt of a run.
    with torch.no_grad():
        encoded = encoder_of(pipe)(pipe, concept, **settings)
    return encoded[0][0]


def encoder_of(pipe: Any) -> Callable[..., Any]:
    """The method by which a pipeline's class encodes prompts, without what follows it.

    Raises:
        ConceptError: If it has none of that name (JoyImage-Edit Plus).
    """
    if not hasattr(type(pipe), "encode_prompt"):
        raise ConceptError(
            f"{type(pipe).__name__} has no `encode_prompt`, by which words are encoded outside of "
            "a run; give concept streams embeddings with axes batch, concept, d_text, such as rows "
            "of `hook_text_emb` of a run"
        )
    return unobserved(type(pipe), "encode_prompt")


def encoder_settings(
    pipe: Any,
    device: torch.device,
    length: int | None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The arguments of a pipeline's `encode_prompt`, the prompt apart.

    Args:
        pipe: The pipeline.
        device: Where to encode.
        length: Padded length; None is the pipeline's default.
        settings: Further arguments, such as those of a run; what `encode_prompt` lacks is left out.

    Raises:
        ConceptError: On a length, where the pipeline pads to a fixed one; as `encoder_of`.
    """
    parameters = inspect.signature(encoder_of(pipe)).parameters
    usual = {
        **dict.fromkeys(("prompt_2", "prompt_3", "prompt_4")),
        **dict.fromkeys(("num_images_per_prompt", "num_videos_per_prompt"), 1),
        "device": device,
        "do_classifier_free_guidance": False,
        **(settings or {}),
    }
    found = {name: value for name, value in usual.items() if name in parameters}
    if "max_sequence_length" in parameters:
        default = parameters["max_sequence_length"].default
        found["max_sequence_length"] = default if length is None else length
    elif length is not None:
        raise ConceptError(
            f"max_sequence_length={length} was given, but {type(pipe).__name__} pads to a fixed "
            "length; leave it out"
        )
    return found


def _row_of(embeddings: Tensor, row: int) -> int:
    count = len(embeddings)
    if not -count <= row < count:
        raise ConceptError(
            f"tokens={row} names a row of each concept's encoded text, and that has {count} rows; "
            "give one of them, or raise max_sequence_length="
        )
    return row % count


def _refuse_bad(concepts: Sequence[str]) -> None:
    if not concepts:
        raise ConceptError('no concepts were given; give words or phrases, such as ["cat", "sky"]')
    for concept in concepts:
        if not concept.strip():
            raise ConceptError(f"concept {concept!r} is empty; an empty concept has no token")
    repeated = [concept for concept in concepts if list(concepts).count(concept) > 1]
    if repeated:
        raise ConceptError(f"concept {repeated[0]!r} is given twice; name each once")


def _refuse_alike(pipe: Any, concept: str, before: list[str], found: list[Tensor]) -> None:
    """Refuse a concept that is read like one before: there would be one map under two names."""
    for other, embeddings in zip(before, found, strict=False):
        if torch.equal(embeddings, found[-1]):
            raise ConceptError(
                f"{type(pipe).__name__} reads the concepts {other!r} and {concept!r} alike: its "
                "tokenizer knows no difference between them; give other words"
            )


def _refuse_long(pipe: Any, parts: Sequence[TextPart], concept: str, padded: int | None) -> None:
    for part in parts:
        tokenizer = tokenizer_of(pipe, part)
        if tokenizer is None or part.template is not None or part.pieces is not None:
            continue  # with a template the word's own tokens are looked for, and found to be cut
        limit = part.length or padded or tokenizer.model_max_length
        count = len(tokenizer(concept, verbose=False)["input_ids"])
        if count > limit:
            raise ConceptError(
                f"concept {concept[:40]!r}… has {count} tokens (start and end included), "
                f"{part.tokenizer} takes {limit}; shorten it"
                + ("" if part.length else ", or raise max_sequence_length=")
            )
