"""Patching heads behind their attention: what a head adds is its columns of the projection times z.

So the attention need not run again: its recorded output gets the columns times the change of z.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lens.analyses.patching.batch import Batch, refuse_other_length
from diffusion_lens.authoring import Attention, HeadValues, Part, is_plain, take
from diffusion_lens.hook_points import HookPoint


@dataclass(frozen=True)
class HeadOutput:
    """The module behind which heads can be patched.

    Attributes:
        path: The attention; where it shares its projection with an MLP, that projection.
        attention: Its description.
        weights: For each hook point, axes d_model, head, d_head.
        streams: For each hook point, its stream.
    """

    path: str
    attention: Attention
    weights: Mapping[str, Tensor]
    streams: Mapping[str, str]

    def changed(
        self, output: Any, batch: Batch, source: Mapping[str, Tensor], base: Mapping[str, Tensor]
    ) -> Any:
        """A recorded output, one row for each row of the batch, with its cells patched.

        Args:
            output: The output; it is changed in place.
            batch: The patches.
            source: The source's z by hook point, for every recorded row.
            base: The base's.
        """
        for rows, change in batch.changes():
            stream = self.streams[change.name]
            refuse_other_length(change.name, source[change.name], base[change.name], [change])
            heads = slice(None) if change.heads is None else list(change.heads)
            parts: list[Part] = [((1, at),) if at is not None else () for at in
                                 (change.source_pos, change.pos)]  # fmt: skip
            theirs, mine = (
                take(values[change.name][batch.recorded], part)[:, :, heads]
                for values, part in zip((source, base), parts, strict=True)
            )
            weights = self.weights[change.name][:, heads]
            added = torch.einsum("bphd,ohd->bpo", theirs - mine, weights)
            target = self._stream(output, stream, base)[rows]
            if change.pos is None:
                target += added
            else:
                at = change.pos if isinstance(change.pos, slice) else list(change.pos)
                target[:, at] += added
        return output

    def _stream(self, output: Any, stream: str, base: Mapping[str, Tensor]) -> Tensor:
        """The part of the output that belongs to a stream, as a view."""
        projection = self.attention.projections[stream]
        if not projection.fused:
            place = self.attention.outputs.get(stream)
            return output if isinstance(output, Tensor) else output[place or 0]
        length = base[next(name for name, one in self.streams.items() if one == stream)].shape[1]
        first = projection.streams[0] == stream
        return output[:, :length] if first else output[:, output.shape[1] - length :]


def behind_heads(denoiser: nn.Module, points: Sequence[HookPoint]) -> HeadOutput | None:
    """Where patches of some hook points can start behind the attention; None where they cannot.

    They can if all are the z of one attention whose output projection is an ordinary linear layer.
    """
    sources: list[Any] = [point.source for point in points]
    if not all(isinstance(source, HeadValues) for source in sources):
        return None
    if len({(source.block, source.attention) for source in sources}) != 1:
        return None
    block, attention = sources[0].block, sources[0].attention
    module: Any = denoiser.get_submodule(block.inside(attention.module))
    if getattr(module, "rescale_output_factor", 1) != 1:
        return None
    weights, path = {}, block.inside(attention.module)
    for point, source in zip(points, sources, strict=True):
        projection = attention.projections[source.stream]
        linear: Any = denoiser.get_submodule(block.inside(projection.module))
        if not is_plain(linear, next(module.parameters())):
            return None
        path = block.inside(projection.module) if projection.fused else path
        weights[point.name] = linear.weight[:, : module.inner_dim].unflatten(1, (module.heads, -1))
    streams = {point.name: source.stream for point, source in zip(points, sources, strict=True)}
    return HeadOutput(path, attention, weights, streams)
