"""What a denoiser consists of, read off one evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lens.describing.alike import alike
from diffusion_lens.describing.blocks import Reading, read_block
from diffusion_lens.describing.plain import as_compared
from diffusion_lens.describing.residuals import residuals
from diffusion_lens.describing.rows import disturbed, label_rows
from diffusion_lens.describing.streams import Streams
from diffusion_lens.describing.tracing import Call, Place, Trace, copied, replaced, tensors, trace


@dataclass
class DenoiserReading:
    """What was read of a denoiser.

    Attributes:
        blocks: Of its blocks, in order of their calls.
        text_ends: Whether the text that leaves the last block moves nothing; None where that block
            hands no text on.
    """

    blocks: list[Reading]
    text_ends: bool | None

    @property
    def doubts(self) -> list[str]:
        """What was left open, each once."""
        return list(dict.fromkeys(doubt for block in self.blocks for doubt in block.doubts))


def read_denoiser(
    denoiser: nn.Module,
    inputs: Mapping[str, Any],
    paths: Sequence[str],
    streams: Mapping[str, Sequence[str]],
    *,
    all_of_them: bool = True,
) -> DenoiserReading:
    """Read the blocks at some paths.

    Args:
        denoiser: The model, in evaluation mode.
        inputs: The keyword arguments of one call; every intermediate tensor of the blocks that are
            read is held.
        paths: The blocks.
        streams: For each stream the arguments of the denoiser that it is made from.
        all_of_them: Whether each block is read; else the first and the last of those that consist
            of the same modules and run alike stand for all.
    """
    like = {path: (path,) for path in paths} if all_of_them else alike(denoiser, inputs, paths)
    read = {path for ones in like.values() for path in ones}
    found = trace(
        denoiser,
        inputs,
        kept=frozenset(paths).__contains__,
        passed=(frozenset(paths) - read).__contains__,
    )
    calls = [call for call in found.calls if call.path in frozenset(paths)]
    ways = {call: residuals(found, call) for call in calls if call.path in read}
    first_of = {call.path: call for call in ways}
    ways = {call: ways.get(call) or ways[first_of[like[call.path][0]]] for call in calls}
    places = {name: _places(inputs, arguments) for name, arguments in streams.items()}
    image = _places(inputs, streams["img"])
    labels = label_rows(found, ways, places, batch=_samples(inputs, image))
    own = {
        call.path: read_block(found, Streams.of(call, ways[call], labels))
        for call in calls
        if call.path in read
    }
    blocks = [
        own.get(call.path) or _like(call, [own[one] for one in like[call.path]]) for call in calls
    ]
    ends = _text_ends(found, Streams.of(calls[-1], ways[calls[-1]], labels)) if calls else None
    return DenoiserReading(blocks, ends)


def _like(call: Call, ones: Sequence[Reading]) -> Reading:
    """A block that was not read, by those that consist of the same modules."""
    first, last = ones[0], ones[-1]
    doubts = list(dict.fromkeys([*first.doubts, *last.doubts]))
    if as_compared(first.spec, first) != as_compared(last.spec, last):
        doubts.append(
            f"{first.call.path} and {last.call.path} consist of the same modules and run otherwise"
        )
    return Reading(call, first.spec, first.rows, doubts)


def _text_ends(found: Trace, last: Streams) -> bool | None:
    """Whether disturbing the text that leaves the last block leaves the prediction as it is."""
    masks = {}
    for one in last.residuals:
        rows, output = last.arguments.get(one.argument), last.block.gives[one.output].tensor
        if rows is not None and "txt" in rows.order and output.shape[rows.axis] == len(rows.names):
            masks[one.output] = rows.mask("txt", output.ndim)
    if not masks:
        return None

    def disturb(_module: nn.Module, _args: Any, output: Any) -> Any:
        for place, mask in masks.items():
            given = dict(tensors(output))[place]
            output = replaced(output, place, torch.where(mask, disturbed(given), given))
        return output

    handle = last.block.module.register_forward_hook(disturb)
    try:
        with torch.no_grad():
            output = found.denoiser(**copied(dict(found.inputs)))
    finally:
        handle.remove()
    return torch.equal(next(value for _, value in tensors(output)), found.prediction)


def _places(inputs: Mapping[str, Any], arguments: Sequence[str]) -> list[Place]:
    return [(name, *place) for name in arguments for place, _ in tensors(inputs.get(name))]


def _samples(inputs: Mapping[str, Any], places: Sequence[Place]) -> int:
    given = inputs[str(places[0][0])]
    return given.shape[0] if isinstance(given, Tensor) else len(given)
