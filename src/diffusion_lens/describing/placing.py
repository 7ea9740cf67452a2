"""Whether image tokens lie row by row on the token grid: by disturbing the latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lens.describing.blocks import Reading
from diffusion_lens.describing.inputs import Inputs
from diffusion_lens.describing.tracing import bound, copied, tensors

SPACE = ("frame", "height", "width")


class _Reached(Exception):
    """The first block was reached; nothing behind it needs to run."""


def in_order(
    latents: Any,
    axes: Sequence[str],
    grid: Sequence[int],
    entering: Callable[[Tensor], Tensor | None],
) -> bool:
    """Whether the cells at both ends of the grid's first row, column and frame are their tokens.

    Latents that come as one tensor for each sample are not looked at.

    Args:
        latents: Those of one call.
        axes: Of the latents, the batch apart.
        grid: The token grid.
        entering: The image tokens that the first block is given, from the latents; None where there
            are none.
    """
    if not isinstance(latents, Tensor):
        return True
    sides = [at for at, axis in enumerate(axes, 1) if axis in SPACE] or [1]
    shape = tuple(grid) if len(sides) > 1 else (math.prod(grid),)
    if len(sides) != len(shape):
        return True
    ends = [[at * (size - 1) for at, size in zip(one, grid, strict=True)] for one in _ends(grid)]
    plain = entering(latents)
    if plain is None:
        return False
    for cell in ends:
        token = 0
        for at, size in zip(cell, grid, strict=True):
            token = token * size + at
        place = cell if len(sides) > 1 else [token]
        other = latents.clone()
        for_cell: list[Any] = [slice(None)] * latents.ndim
        for side, at, size in zip(sides, place, shape, strict=True):
            each = latents.shape[side] / size
            for_cell[side] = slice(round(at * each), max(round((at + 1) * each), 1))
        other[tuple(for_cell)] += 3 * latents.float().std().clamp_min(0.1).to(latents)
        moved = entering(other)
        if moved is None or int((moved - plain).float().abs().sum((0, 2)).argmax()) != token:
            return False
    return True


def _ends(grid: Sequence[int]) -> list[list[int]]:
    """The last cell along each side alone."""
    return [[int(one == at) for one in range(len(grid))] for at in range(len(grid))]


def entering_first(
    denoiser: nn.Module, inputs: Inputs, first: Reading, latents: Tensor
) -> Tensor | None:
    """The image tokens that the first block is given; None where there are none.

    Args:
        denoiser: The model, in evaluation mode.
        inputs: The arguments of one call.
        first: The first block; its argument with the image is what is looked at.
        latents: Latents in place of those of the call.
    """
    argument = first.spec.streams["img"].argument
    found: list[Tensor] = []

    def look(module: nn.Module, args: Any, kwargs: Any) -> None:
        for place, value in tensors(bound(module, args, kwargs)):
            rows = first.rows.get(place)
            if place[0] == argument and rows is not None and "img" in rows.names:
                own = [at for at, name in enumerate(rows.names) if name == "img"]
                value = value.movedim(rows.axis, 1).flatten(2)
                found.append(value[:, own].clone())
        raise _Reached

    handle = first.call.module.register_forward_pre_hook(look, with_kwargs=True)
    try:
        with torch.no_grad():
            denoiser(**{**copied(dict(inputs.given)), inputs.latents: latents.clone()})
    except _Reached:
        pass
    finally:
        handle.remove()
    return found[0] if found else None
