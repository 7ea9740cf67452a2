"""Checking what was asked for and making the streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from diffusion_lens.architectures.spec import ConceptEntry
from diffusion_lens.concept_streams.concept_pass import ConceptInput
from diffusion_lens.concept_streams.encoding import encode_concepts, encode_together, pooled_of
from diffusion_lens.concept_streams.streams import ConceptStreams, carriers
from diffusion_lens.concept_streams.view import ATTENDED
from diffusion_lens.engine.prompt_blocks import encoding, text_length
from diffusion_lens.engine.wiring import Wiring
from diffusion_lens.errors import ConceptError, UnsupportedModelError, listing, refuse_unknown

TOKENS = ("all", "first", "joint")
POOLED = ("zeros", "prompt", "concepts")


def open_streams(
    wiring: Wiring,
    concepts: Sequence[str] | Tensor,
    *,
    tokens: str,
    pooled: str | Tensor | None,
    attend: Sequence[str],
    blocks: Sequence[int] | None,
    max_sequence_length: int | None,
    slots: int | None,
    image_queries: bool,
) -> ConceptStreams:
    """Make the streams of `HookedDiffusion.concept_streams`, whose arguments these are."""
    entry = wiring.spec.concepts
    if entry is None:
        raise UnsupportedModelError(
            f"{wiring.called} has no concept streams: they run through a text "
            "stream's own weights, and here text enters by cross-attention only. Use "
            "`analyses.attention_maps`, which maps words that are not in the prompt as well, "
            "`analyses.head_relevance` for what single heads do, or the hook points of "
            "`model.text_pattern_sites()`."
        )
    refuse_unknown("tokens", tokens, TOKENS, error=ConceptError)
    attended = (attend,) if isinstance(attend, str) else tuple(attend)
    for one in attended:
        refuse_unknown("attend", one, ATTENDED, error=ConceptError)
    own = _pooled(entry, pooled)
    chosen = _blocks(wiring, blocks)
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
        embeddings, rows = _encoded(wiring, words, tokens, max_sequence_length)
        if isinstance(own, str) and own == "concepts":
            own = pooled_of(_encoding(wiring), words, device=wiring.device)
    given = ConceptInput(_filled(embeddings, slots), own)
    return ConceptStreams(rows, given, attended, chosen, image_queries)


def _encoded(
    wiring: Wiring, words: Sequence[str], tokens: str, length: int | None
) -> tuple[Tensor, Mapping[str, slice]]:
    if wiring.pipe is None:
        raise ConceptError(
            "a bare denoiser has no text encoder; give embeddings with axes batch, concept, "
            "d_text, or wrap the pipeline"
        )
    encode = partial(encode_concepts, first=tokens == "first")
    if tokens == "joint":
        encode = encode_together
    parts = wiring.spec.text_parts
    length = text_length(wiring.pipe, length)
    pipe = _encoding(wiring)
    return encode(pipe, parts, words, device=wiring.device, max_sequence_length=length)


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
    return F.pad(embeddings, (0, 0, 0, slots - count))


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
    module: Any = wiring.denoiser.get_submodule(entry.projection)
    width = getattr(module, "in_features", None)
    wrong_width = width is not None and embeddings.shape[-1:] != (width,)
    if embeddings.ndim != 3 or 0 in embeddings.shape or wrong_width:
        raise ConceptError(
            f"concept embeddings have shape {tuple(embeddings.shape)}; axes batch, concept, d_text "
            f"are needed, with d_text = {width or 'the width of the text encoder'}"
        )
    return embeddings
