"""Which tokens of a block's arguments are the image's, which the text's: by disturbing inputs."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusion_lens.describing.origins import segments
from diffusion_lens.describing.residuals import Residual
from diffusion_lens.describing.tracing import (
    Call,
    Place,
    Trace,
    bound,
    copied,
    replaced,
    tensors,
)


@dataclass(frozen=True)
class Rows:
    """The streams along a tensor's sequence.

    Attributes:
        names: The stream of each token.
        axis: The axis of the tokens.
        unmoved: How many tokens no input moves; they are counted to the text where there is any.
        both: How many of the image's tokens text moves, too, where it is not all of them.
    """

    names: tuple[str, ...]
    axis: int = 1
    unmoved: int = 0
    both: int = 0

    @property
    def order(self) -> tuple[str, ...]:
        """The streams, in order."""
        return segments(list(self.names))

    def mask(self, name: str, ndim: int) -> Tensor:
        """Where the tokens of a stream lie, for a tensor of some number of axes."""
        shape = [1] * ndim
        shape[self.axis] = len(self.names)
        return torch.tensor([one == name for one in self.names]).view(shape)


Labels = dict[tuple[Call, Place], Rows]


def label_rows(
    trace: Trace,
    blocks: Mapping[Call, Sequence[Residual]],
    streams: Mapping[str, Sequence[Place]],
    *,
    batch: int,
) -> Labels:
    """The stream of each token of each argument of the blocks.

    One input after the other is disturbed, with every block held to what it gave before, but for
    noise on the tokens that were moved when they came in. So a token keeps its stream, and nothing
    that attention mixes is seen.

    Args:
        trace: An evaluation.
        blocks: The residuals of each block call.
        streams: For each stream the inputs of the denoiser that it is made from.
        batch: How many samples the evaluation has.
    """
    moved: dict[tuple[Call, Place], dict[str, Tensor]] = {}
    for name, places in streams.items():
        for key, mask in _moved_by(trace, blocks, places).items():
            moved.setdefault(key, {})[name] = mask
    return {key: rows for key, masks in moved.items() if (rows := _named(masks, batch))}


def _moved_by(
    trace: Trace, blocks: Mapping[Call, Sequence[Residual]], places: Sequence[Place]
) -> dict[tuple[Call, Place], Tensor]:
    """For each argument of each block which elements move with some inputs, features apart."""
    inputs: Any = copied(dict(trace.inputs))
    for place in places:
        inputs = replaced(inputs, place, disturbed(_at(inputs, place)))
    held = _Holding(blocks)
    with held.on(trace), torch.no_grad():
        trace.denoiser(**inputs)
    return held.moved


def disturbed(value: Tensor) -> Tensor:
    """A tensor with noise of its own size; whole numbers change places with their neighbours."""
    if not value.is_floating_point():
        return value.roll(1, -1)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(value.shape, generator=generator)
    spread = value.float().std().clamp_min(0.1) if value.numel() > 1 else 1.0
    return value + (noise * spread).to(value)


def _at(value: Any, place: Place) -> Any:
    for key in place:
        value = value[key]
    return value


class _Holding:
    """Holds blocks to what they gave in a trace, and sees which of their tokens move."""

    def __init__(self, blocks: Mapping[Call, Sequence[Residual]]) -> None:
        self.blocks = blocks
        self.moved: dict[tuple[Call, Place], Tensor] = {}
        self.calls: Counter[str] = Counter()

    def on(self, trace: Trace) -> contextlib.ExitStack:
        """Until the stack is closed."""
        of_path: dict[str, list[Call]] = {}
        for call in self.blocks:
            of_path.setdefault(call.path, []).append(call)
        stack = contextlib.ExitStack()
        for path, calls in of_path.items():
            module = trace.denoiser.get_submodule(path)
            handle = module.register_forward_hook(self._hold(calls), with_kwargs=True)
            stack.callback(handle.remove)
        return stack

    def _hold(self, calls: list[Call]) -> Any:
        def hold(module: Any, args: Any, kwargs: Any, _output: Any) -> Any:
            call = calls[min(self.calls[calls[0].path], len(calls) - 1)]
            self.calls[call.path] += 1
            assert call.given is not None
            before = dict(tensors(bound(module, *call.given)))
            for place, now in tensors(bound(module, args, kwargs)):
                was = before.get(place)
                if was is not None and was.shape == now.shape and now.ndim >= 3:
                    self.moved[call, place] = (now != was).flatten(2).any(-1)
            return self._with_noise(call)

        return hold

    def _with_noise(self, call: Call) -> Any:
        output = copied(call.output)
        for one in self.blocks[call]:
            mask = self.moved.get((call, one.argument))
            given = dict(tensors(output))[one.output]
            if mask is None or given.shape[:2] != mask.shape:
                continue
            mask = mask.view(*mask.shape, *[1] * (given.ndim - 2))
            output = replaced(output, one.output, torch.where(mask, disturbed(given), given))
        return output


def _named(masks: Mapping[str, Tensor], batch: int) -> Rows | None:
    """The streams along an argument's tokens; None where nothing moves it."""
    shape = next(iter(masks.values())).shape
    axis = 0 if shape[1] == batch != shape[0] else 1
    each, both = [], 0
    for at in range(shape[axis]):
        # A token that several inputs move is the image's where that is one of them: text reaches
        # image tokens by modulation, and not the other way.
        found = [name for name, mask in masks.items() if bool(mask.select(axis, at).any())]
        both += {"img", "txt"} <= set(found)
        each.append("img" if "img" in found else "+".join(found))
    known = [name for name in each if name]
    if not known:
        return None
    fill = "txt" if "txt" in known else known[0]
    both = both if both < each.count("img") else 0
    return Rows(tuple(name or fill for name in each), axis, len(each) - len(known), both)
