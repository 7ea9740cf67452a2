"""A description beside what an evaluation shows, field by field."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from diffusion_lens.architectures.catalogue import find_blocks
from diffusion_lens.architectures.spec import (
    Attention,
    BlockSite,
    BlockSpec,
    DenoiserSpec,
    Stream,
)
from diffusion_lens.describing.blocks import Reading
from diffusion_lens.describing.denoisers import DenoiserReading, read_denoiser

IMAGE_PROMPTS = ("encoder_hidden_states_image",)
"""Arguments of denoisers that take image prompts."""

UNREAD = frozenset({"absent", "concepts"})
"""Fields that no evaluation shows."""


def compare_with_evaluation(
    spec: DenoiserSpec, denoiser: nn.Module, inputs: Mapping[str, Any]
) -> tuple[list[str], list[str]]:
    """Where a description and one evaluation say different things.

    In float16 more is seen: casts to float32, and values kept within bounds.

    Args:
        spec: The description.
        denoiser: A model of its class, in evaluation mode.
        inputs: The keyword arguments of one call.

    Returns:
        The differences, a line each; and what the evaluation left open.
    """
    blocks = find_blocks(denoiser, spec)
    streams = {"img": (spec.latents,), "txt": (spec.text, *spec.text_beside)}
    streams |= {"ip": IMAGE_PROMPTS} if set(IMAGE_PROMPTS) & set(inputs) else {}
    reading = read_denoiser(denoiser, inputs, [block.path for block in blocks], streams)
    found = differences(blocks, reading.blocks)
    return [*found, *_of_the_whole(spec, blocks, reading)], reading.doubts


def _of_the_whole(
    spec: DenoiserSpec, blocks: list[BlockSite], reading: DenoiserReading
) -> Iterator[str]:
    said, seen = [block.path for block in blocks], [one.call.path for one in reading.blocks]
    if said != seen:
        first = next(
            at for at, pair in enumerate(zip(said, seen, strict=False)) if len({*pair}) > 1
        )
        yield f"order of blocks: described {said[first]} as block {first}, where {seen[first]} runs"
    ends = reading.text_ends
    if ends is not None and ends != spec.text_ends_in_last_block:
        yield (
            f"text_ends_in_last_block: described as {spec.text_ends_in_last_block}, the text that "
            f"leaves the last block {'moves nothing' if ends else 'moves the prediction'}"
        )


def differences(blocks: Iterable[BlockSite], readings: Iterable[Reading]) -> list[str]:
    """Where descriptions of blocks and an evaluation say different things.

    Args:
        blocks: The described blocks.
        readings: What was read of them, in any order.

    Returns:
        A line for each field and class of block, with what is described and what was read.
    """
    read = {one.call.path: one for one in readings}
    found: dict[str, None] = {}
    for block in blocks:
        reading = read.get(block.path)
        if reading is None:
            found[f"{block.path}: described, and not run"] = None
            continue
        kind = type(reading.call.module).__name__
        ours, theirs = as_compared(block.spec, reading), as_compared(reading.spec, reading)
        for field, said, seen in _unequal("", ours, theirs):
            found[f"{kind}, {field}: described as {said!r}, read as {seen!r}"] = None
    return list(found)


def as_compared(spec: BlockSpec, reading: Reading) -> dict[str, Any]:
    """A description as nested mappings in which equal things look equal."""
    return {
        "streams": {name: _stream(one, reading) for name, one in spec.streams.items()},
        "attentions": {one.name: _attention(one, reading) for one in spec.attentions},
        "order of attentions": [one.name for one in spec.attentions],
        "mlps": {name: _fields(one) for name, one in spec.mlps.items()},
    }


def _stream(stream: Stream, reading: Reading) -> dict[str, Any]:
    found = _fields(stream)
    if not stream.returned:
        del found["output"]
    if reading.precision != torch.float16:
        del found["clamped"]  # whatever is not float16 has no such bounds
    if stream.entrance is not None and reading.enters_unchanged(stream):
        found["entrance"] = None
    return found


def _attention(attention: Attention, reading: Reading) -> dict[str, Any]:
    found = _fields(attention)
    module = reading.call.module.get_submodule(attention.module)
    found["sizes"] = attention.head_sizes(module)
    found["outputs"] = {name: at for name, at in attention.outputs.items() if at is not None}
    if not attention.before_rope:
        del found["heads_first"], found["heads_joined"]
    return found


def _fields(value: Any) -> Any:
    """A dataclass as a mapping, and so on inward."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: _fields(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: _fields(one) for name, one in value.items()}
    if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
        return dict(enumerate(map(_fields, value)))
    return value


def _unequal(at: str, said: Any, seen: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(said, Mapping) and isinstance(seen, Mapping):
        for name in dict.fromkeys((*said, *seen)):
            where = f"{at}.{name}" if at else str(name)
            yield from _unequal(where, said.get(name), seen.get(name))
    elif said != seen:
        yield at, said, seen
