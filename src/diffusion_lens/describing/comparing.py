"""A description beside what an evaluation shows, field by field."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from diffusion_lens.architectures.catalogue import find_blocks, find_refiners
from diffusion_lens.architectures.spec import (
    BlockSite,
    DenoiserSpec,
)
from diffusion_lens.describing.blocks import Reading
from diffusion_lens.describing.denoisers import DenoiserReading, read_denoiser
from diffusion_lens.describing.inputs import IMAGE_PROMPTS
from diffusion_lens.describing.plain import as_compared, unequal


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
    blocks = [*find_refiners(denoiser, spec), *find_blocks(denoiser, spec)]
    streams = {"img": (spec.latents,), "txt": (spec.text, *spec.text_beside)}
    streams |= {stream: (argument,) for stream, argument in spec.further.items()}
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
        for field, said, seen in unequal("", ours, theirs):
            found[f"{kind}, {field}: described as {said!r}, read as {seen!r}"] = None
    return list(found)
