"""What surrounds the blocks of a denoiser: the timestep's embedding, axes, the token grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from diffusion_lens.architectures import forms
from diffusion_lens.describing.blocks import Reading
from diffusion_lens.describing.inputs import Inputs
from diffusion_lens.describing.origins import sources
from diffusion_lens.describing.source import Calling, Code
from diffusion_lens.describing.tracing import Call, Value, trace

AXES = {
    3: ("pos", "channel"),
    4: ("channel", "height", "width"),
    5: ("channel", "frame", "height", "width"),
}
"""Axes of latents by how many there are, the batch apart."""


@dataclass(frozen=True)
class Grid:
    """A function that gives the token grid, and how it is written.

    Attributes:
        of: The function.
        code: Its source.
        argument: The argument whose values make it; None where shapes alone do.
    """

    of: Callable[..., tuple[int, ...]]
    code: Any
    argument: str | None = None


def axes_of(latents: Any, channels: int | None) -> tuple[str, ...] | None:
    """Axes of the latents, the batch apart; None where there are others than the usual.

    Args:
        latents: A tensor, or one for each sample.
        channels: How many channels the denoiser takes.
    """
    sizes = list(latents.shape[1:] if isinstance(latents, Tensor) else latents[0].shape)
    axes = AXES.get(len(sizes) + 1)
    if len(sizes) == 4 and sizes[0] != channels == sizes[1]:
        return ("frame", "channel", "height", "width")
    return axes


def embedding_of_time(denoiser: nn.Module, inputs: Inputs, blocks: Sequence[str]) -> str | None:
    """Path of the first module with layers whose output is made of the timestep, and of no stream.

    None where there is none.
    """
    found = trace(
        denoiser, inputs.given, kept=lambda _path: False, passed=frozenset(blocks).__contains__
    )
    top = found.calls[0]
    streams = {name for names in inputs.streams.values() for name in names}
    for call in found.calls[1:]:
        if call.path in blocks:
            return None
        layers = any(next(one.parameters(), None) is not None for one in call.module.children())
        given = list(call.gives.values())
        if len(given) != 1 or given[0].tensor.ndim != 2 or not layers:
            continue
        made_from = _arguments_behind(given[0], top)
        if inputs.timestep in made_from and not made_from & streams:
            return call.path
    return None


def _arguments_behind(value: Value, top: Call) -> set[str]:
    """The arguments of the denoiser that a value is made from."""
    given = {taken: str(place[0]) for place, taken in top.takes.items()}
    return {given[one] for one in sources(value, top, ends=given) if one in given}


def grid_of(denoiser: Any, inputs: Inputs, tokens: int) -> Grid | None:
    """The form of grid that gives as many tokens as the blocks have; None where none does."""
    return next((one for one in _grids(inputs) if _gives(one, denoiser, inputs, tokens)), None)


def _grids(inputs: Inputs) -> list[Grid]:
    of_latents = () if inputs.latents == "hidden_states" else (inputs.latents,)
    found = [Grid(forms.grid_of_latents(*of_latents), Calling("forms.grid_of_latents", of_latents))]
    for name in inputs.given:
        if name.endswith("img_ids") or name == "image_ids":
            found.append(Grid(forms.grid_of_ids(name), Calling("forms.grid_of_ids", (name,)), name))
    return found


def _gives(grid: Grid, denoiser: Any, inputs: Inputs, tokens: int) -> bool:
    try:
        sides = grid.of(denoiser, inputs.given, 0)
        return math.prod(sides) == tokens and _row_by_row(grid, inputs, sides)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError):
        return False  # its configuration or its arguments are not of this kind


def _row_by_row(grid: Grid, inputs: Inputs, sides: tuple[int, ...]) -> bool:
    """Whether ids, where they make the grid, count its rows one after the other."""
    if grid.argument is None:
        return True
    ids = inputs.given[grid.argument]
    ids = (ids[0] if ids.ndim == 3 else ids)[:, 1:3].long()  # as `forms.grid_of_ids` has it
    own = ids[: math.prod(sides)] - ids[0]
    places = own[:, 0] * sides[-1] + own[:, 1]
    return places.tolist() == list(range(math.prod(sides)))


def in_one_row(name: str) -> Grid:
    """A grid of one axis, for latents that come as tokens and say nothing of their places."""
    return Grid(
        lambda _denoiser, arguments, _level: (arguments[name].shape[1],),
        Code(f"lambda _denoiser, arguments, _level: (arguments[{name!r}].shape[1],)"),
    )


def tokens_of(readings: list[Reading], stream: str) -> set[int]:
    """How many tokens of a stream the blocks have, each number once."""
    return {
        rows.names.count(stream)
        for reading in readings
        for name, one in reading.spec.streams.items()
        if name == stream
        for place, rows in reading.rows.items()
        if place[0] == one.argument
    }
