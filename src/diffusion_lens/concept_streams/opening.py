"""Checking what was asked for and making the streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lens.architectures.spec import ConceptEntry
from diffusion_lens.concept_streams.concept_pass import ConceptInput
from diffusion_lens.concept_streams.encoding import encode_concepts, encode_together, pooled_of
from diffusion_lens.concept_streams.entering import entry_modules
from diffusion_lens.concept_streams.streams import ConceptStreams, carriers
from diffusion_lens.concept_streams.view import ATTENDED
from diffusion_lens.engine.prompt_blocks import encoding, text_length
from diffusion_lens.engine.wiring import Wiring
from diffusion_lens.errors import (
    ConceptError,
    UnsupportedModelError,
    WordError,
    listing,
    refuse_unknown,
)

TOKENS = ("all", "first", "joint")
POOLED = ("zeros", "prompt", "concepts")


def open_streams(
    wiring: Wiring,
    concepts: Sequence[str] | Tensor,
    *,
    tokens: str | int,
    position: int | None,
    pooled: str | Tensor | None,
    attend: Sequence[str],
    blocks: Sequence[int] | None,
    max_sequence_length: int | None,
    slots: int | None,
    image_queries: bool,
    encoder_settings: Mapping[str, Any] | None,
) -> ConceptStreams:
    """Make the streams of `HookedDiffusion.concept_streams`, whose arguments these are."""
    entry = wiring.spec.concepts
    if entry is None:
        raise UnsupportedModelError(_why_none(wiring))
    if not isinstance(tokens, int):
        refuse_unknown("tokens", tokens, TOKENS, error=ConceptError)
    attended = (attend,) if isinstance(attend, str) else tuple(attend)
    for one in attended:
        refuse_unknown("attend", one, ATTENDED, error=ConceptError)
    own = _pooled(entry, pooled)
    chosen = _blocks(wiring, blocks)
    placed = _position(wiring, position)
    rows: Mapping[str, slice]
    if isinstance(concepts, Tensor):
        embeddings = _checked(wiring, entry, concepts)
        rows = {str(row): slice(row, row + 1) for row in range(embeddings.shape[1])}
        if isinstance(own, str) and own == "concepts":
            raise ConceptError(
                'pooled="concepts" needs concepts as words, these are embeddings; give the pooled '
                "embedding as a tensor"
            )
    else:
        words = [concepts] if isinstance(concepts, str) else list(concepts)
        embeddings, rows = _encoded(wiring, words, tokens, max_sequence_length, encoder_settings)
        if isinstance(own, str) and own == "concepts":
            own = pooled_of(_encoding(wiring), words, device=wiring.device)
    given = ConceptInput(_filled(embeddings, slots), own, placed)
    return ConceptStreams(rows, given, attended, chosen, image_queries)


def _why_none(wiring: Wiring) -> str:
    """Why a model has no concept streams, and what to call in their place."""
    blocks = [getattr(point.source, "block", None) for point in wiring.points.values()]
    both = any(block is not None and "txt" in block.spec.streams for block in blocks)
    undescribed = "how its text enters is not described for them"
    why = wiring.spec.without_concepts or (undescribed if both else "")
    return (
        f"{wiring.called} has no concept streams: they run through a text stream's own weights, "
        f"and here {why or 'text enters by cross-attention only'}. Use "
        "`analyses.attention_maps`, which maps "
        + ("words of the prompt" if both else "words that are not in the prompt as well")
        + f", `analyses.{'head_patterns' if both else 'head_relevance'}` for what single heads do, "
        "or the hook points of `model.text_pattern_sites()`."
    )


def _position(wiring: Wiring, position: int | None) -> int:
    """The text token whose place concepts take.

    Raises:
        ConceptError: If no text token of the family has a place.
    """
    if position is None:
        return 0
    described = [block.spec.concepts for block in carriers(wiring.points)]
    placed = [
        one
        for concepts in described
        if concepts is not None
        for entries in concepts.positions.values()
        for one in entries
    ]
    if not any("txt" in one.streams for one in placed):
        raise ConceptError(
            f"position={position} was given, but the text of {wiring.called} has no rotary "
            "embedding: its tokens have no place for a concept to take; leave it out"
        )
    return position


def _encoded(
    wiring: Wiring,
    words: Sequence[str],
    tokens: str | int,
    length: int | None,
    settings: Mapping[str, Any] | None,
) -> tuple[Tensor, Mapping[str, slice]]:
    if wiring.pipe is None:
        raise ConceptError(
            "a bare denoiser has no text encoder; give embeddings with axes batch, concept, "
            "d_text, or wrap the pipeline"
        )
    if isinstance(tokens, int):
        encode: Any = partial(encode_concepts, row=tokens)
    elif tokens == "joint":
        encode = encode_together
    else:
        encode = partial(encode_concepts, first=tokens == "first")
    try:
        return encode(
            _encoding(wiring),
            wiring.spec.text_parts,
            words,
            device=wiring.device,
            max_sequence_length=text_length(wiring.pipe, length),
            ahead=wiring.points["hook_text_emb"].skipped,
            settings=settings,
        )
    except WordError as error:
        raise ConceptError(
            f"a concept's tokens cannot be told: {error}. Give embeddings with axes batch, "
            "concept, d_text"
        ) from error


def _encoding(wiring: Wiring) -> Any:
    """The pipeline that encodes concepts: of a modular one the classic one of its components."""
    return encoding(wiring.pipe, "encoding concepts", error=ConceptError)


def _filled(embeddings: Tensor, slots: int | None) -> Tensor:
    """Embeddings with rows of zeros behind them, up to a number of rows."""
    count = embeddings.shape[1]
    if slots is None:
        return embeddings
    if slots < count:
        raise ConceptError(
            f"slots={slots} cannot hold the {count} tokens of these concepts; raise it, or leave "
            "it out"
        )
    return F.pad(embeddings, (0, 0) * (embeddings.ndim - 2) + (0, slots - count))


def _pooled(entry: ConceptEntry, pooled: str | Tensor | None) -> str | Tensor:
    if pooled is None:
        return entry.pooled
    if entry.pooled_argument is None and not (isinstance(pooled, str) and pooled == "prompt"):
        raise ConceptError(
            "pooled= was given, by itself or by a preset, but this family's modulation takes no "
            "pooled text embedding; leave it out, or take a preset without it: concepts share the "
            "image's modulation"
        )
    if isinstance(pooled, Tensor):
        if pooled.ndim != 2:
            raise ConceptError(
                f"pooled= has shape {tuple(pooled.shape)}; axes batch, d_pooled are needed"
            )
        return pooled
    refuse_unknown("pooled", pooled, POOLED, error=ConceptError)
    return pooled


def _blocks(wiring: Wiring, blocks: Sequence[int] | None) -> tuple[int, ...]:
    able = carriers(wiring.points)
    found = tuple(block.index for block in able)
    if blocks is None:
        return tuple(
            block.index for block in able if block.spec.concepts and block.spec.concepts.by_default
        )
    counted = [block + wiring.n_blocks if block < 0 else block for block in blocks]
    wrong = [given for given, block in zip(blocks, counted, strict=True) if block not in found]
    if wrong or not counted:
        what = f"block {wrong[0]} has none" if wrong else "blocks= is empty"
        raise ConceptError(
            f"{what}: of the {wiring.n_blocks} blocks of {wiring.called}, these "
            f"can carry concepts: {listing(found, most=60)}"
        )
    return tuple(sorted(set(counted)))


def _checked(wiring: Wiring, entry: ConceptEntry, embeddings: Tensor) -> Tensor:
    axes = wiring.points["hook_text_emb"].axes[2:]
    width = _width(entry_modules(wiring.denoiser, entry)[0])
    wrong_width = width is not None and embeddings.shape[-1:] != (width,)
    if embeddings.ndim != 2 + len(axes) or 0 in embeddings.shape or wrong_width:
        raise ConceptError(
            f"concept embeddings have shape {tuple(embeddings.shape)}; axes "
            f"{', '.join(('batch', 'concept', *axes))} are needed, with d_text = "
            f"{width or 'the width of the text encoder'}"
        )
    return embeddings


def _width(module: Any) -> int | None:
    """Width of what a module takes, where it is a linear layer or begins with one."""
    parts = module if isinstance(module, nn.Sequential) else [module]
    widths = (getattr(part, "in_features", None) for part in parts)
    return next((width for width in widths if width is not None), None)
