"""The hook that cuts activations into rows, one for each token that is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion_lens import HookContext, Site
from diffusion_lens.activations.choosing import TokenChoice
from diffusion_lens.errors import StoreError

TOKEN_AXES = (("pos",), ("query",), ("frame", "height", "width"), ("height", "width"))
"""The axes whose entries become rows; all others but `batch` lie along a row."""

PENDING = 2**26
"""Bytes of rows that wait on the model's device before they are taken off it together."""


@dataclass(frozen=True)
class Sample:
    """One image or video of a collection.

    Attributes:
        number: Which one, counted from 0.
        prompt: The number of its prompt.
        seed: Its seed.
        text: The prompt.
    """

    number: int
    prompt: int
    seed: int
    text: str

    @property
    def chosen_by(self) -> str:
        """What a choice of its tokens hangs on: neither its number nor the batch it is in."""
        return f"{self.seed} {self.text}"


@dataclass(frozen=True)
class Record:
    """The rows of one activation: of one hook point, step and branch, for the samples of a batch.

    Attributes:
        site: The hook point's name.
        block: Index of the block, or None outside the blocks.
        step: The step.
        timestep: The scheduler's timestep; a tensor where only the device knows.
        branch: The guidance branch.
        grid: The image's tokens here as text, `8x8`; empty where the rows are none of an image.
        samples: The samples.
        positions: Where each row lies along the tokens, sample by sample; -1 where the activation
            has no token axis.
        values: The rows, sample by sample.
    """

    site: str
    block: int | None
    step: int
    timestep: float | Tensor
    branch: str
    grid: str
    samples: tuple[Sample, ...]
    positions: Tensor
    values: Tensor

    def columns(self) -> dict[str, Any]:
        """What the index says of these rows: one value for all, or one for each."""
        each = len(self.values) // len(self.samples)
        return {
            "site": self.site,
            "prompt": np.repeat([one.prompt for one in self.samples], each),
            "seed": np.repeat([one.seed for one in self.samples], each),
            "step": self.step,
            "timestep": float(self.timestep),
            "branch": self.branch,
            "block": self.block,
            "position": self.positions.flatten().numpy(),
            "grid": self.grid,
        }


@dataclass
class Gatherer:
    """Cuts what hooks see into records and hands them on, in the order in which they came.

    Attributes:
        choice: Which tokens are kept.
        dtype: The precision of the rows; None for that of the activation.
        give: Takes each record, with its rows on the CPU.
        samples: Those of the batch that runs.
    """

    choice: TokenChoice
    dtype: torch.dtype | None
    give: Callable[[Record], None]
    samples: tuple[Sample, ...] = ()
    _waiting: list[Record] = field(default_factory=list)
    _by: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)

    def hooks(self, sites: Sequence[Site]) -> list[tuple[Site, Gathering]]:
        """The hooks that gather at some Sites."""
        return [(site, Gathering(self, number)) for number, site in enumerate(sites)]

    def begin(self, samples: Sequence[Sample]) -> None:
        """Wait for the activations of a batch."""
        self.samples = tuple(samples)
        self._waiting.clear()
        self._by.clear()

    def take(self, activation: Tensor, hook: HookContext, number: int) -> None:
        """Take one activation, unless another Site has given it at this step."""
        step, by = self._by.setdefault((hook.name, hook.branch), (hook.step, number))
        if step == hook.step and by != number:
            return
        self._by[hook.name, hook.branch] = (hook.step, number)
        self._waiting.append(record_of(activation, hook, self))
        if sum(one.values.nbytes for one in self._waiting) >= PENDING:
            self.drain()

    def drain(self) -> None:
        """Hand on what waits."""
        for record in self._waiting:
            self.give(on_cpu(record))
        self._waiting.clear()


@dataclass(frozen=True)
class Gathering:
    """What one of several Sites gives to a gatherer."""

    gatherer: Gatherer
    number: int
    read_only = True

    def __call__(self, activation: Tensor, hook: HookContext) -> None:
        """Gather one activation."""
        self.gatherer.take(activation, hook, self.number)

    def __repr__(self) -> str:
        """As a report shows it."""
        return "collect"


def on_cpu(record: Record) -> Record:
    """A record whose rows are on the CPU."""
    changes: dict[str, Any] = {
        "timestep": float(record.timestep),
        "values": record.values.cpu(),
    }
    return Record(**{**vars(record), **changes})


def record_of(activation: Tensor, hook: HookContext, gatherer: Gatherer) -> Record:
    """One activation as rows.

    Raises:
        StoreError: If it does not have one entry for each sample, or its tokens are no grid where
            one was asked for.
    """
    samples = gatherer.samples
    if activation.shape[0] != len(samples):
        raise StoreError(
            f"{hook.name} has {activation.shape[0]} entries along batch in branch {hook.branch}, "
            f"for {len(samples)} samples, so that rows cannot be told apart; collect with "
            "batch_size=1, or leave this site out"
        )
    named = axes_of(activation, hook)
    rows, axes = as_rows(activation.detach(), named)
    grid, first = grid_of(hook, axes, dict(zip(named, activation.shape, strict=False)))
    total = rows.shape[1]
    chosen = [
        gatherer.choice.of_sample(total, grid, first, sample=one.chosen_by, name=hook.name)
        if axes
        else None
        for one in samples
    ]
    kept = [one for one in chosen if one is not None]
    if kept:
        at = torch.stack(kept)
        each = torch.arange(len(samples), device=rows.device)[:, None]
        rows = rows[each, at.to(rows.device)]
    else:
        at = torch.arange(total).expand(len(samples), total)
    positions = _whole_positions(hook, axes, at)
    values = rows.flatten(0, 1).to(gatherer.dtype or rows.dtype)
    if not hook.owned and _shares(values, activation):
        values = values.clone()
    evaluation = hook.evaluation
    return Record(
        site=hook.name,
        block=hook.block,
        step=hook.step,
        timestep=math.nan if evaluation is None else evaluation.timestep_known(),
        branch=hook.branch,
        grid="" if grid is None else "x".join(map(str, grid)),
        samples=samples,
        positions=positions.to(torch.int32),
        values=values,
    )


def axes_of(activation: Tensor, hook: HookContext) -> tuple[str, ...]:
    """The axes of an activation; those of a loop that holds no frames (Z-Image) have none.

    Raises:
        StoreError: If they are not known.
    """
    if activation.ndim == len(hook.axes) or not set(hook.axes) & {"pos", "query", "height"}:
        return hook.axes
    frameless = tuple(axis for axis in hook.axes if axis != "frame")
    if activation.ndim == len(frameless):
        return frameless
    raise StoreError(
        f"{hook.name} has shape {tuple(activation.shape)} here and the axes {hook.axes}, so that "
        "its tokens cannot be told; leave this site out"
    )


def as_rows(activation: Tensor, axes: Sequence[str]) -> tuple[Tensor, tuple[str, ...]]:
    """An activation as [batch tokens d], and the axes that became its tokens (none: one token)."""
    token_axes = next((one for one in TOKEN_AXES if set(one) <= set(axes)), ())
    dims = [axes.index(one) for one in token_axes]
    moved = activation.movedim(dims, list(range(1, len(dims) + 1)))
    count = math.prod(moved.shape[1 : len(dims) + 1])
    return moved.reshape(len(moved), count, math.prod(moved.shape[len(dims) + 1 :])), token_axes


def grid_of(
    hook: HookContext, axes: Sequence[str], sizes: Mapping[str, int]
) -> tuple[tuple[int, ...] | None, int | None]:
    """The image's grid here, and where along the tokens it begins if all of it is there."""
    if not axes:
        return None, None
    if axes[0] not in ("pos", "query"):
        return tuple(sizes[axis] for axis in axes), 0
    streams: Mapping[str, Any] = hook.queries if axes[0] == "query" else hook.streams
    lies = streams.get("img")
    if lies is None:
        return None, None
    grid = tuple(hook.grid)
    selected = hook.axes.index(axes[0]) in dict(hook.part)
    whole = isinstance(lies, slice) and not selected
    return grid, lies.start if whole and lies.stop - lies.start >= math.prod(grid) else None


def _whole_positions(hook: HookContext, axes: Sequence[str], at: Tensor) -> Tensor:
    """Positions along the whole axis, of which a Site may have selected some."""
    if not axes:
        return torch.full_like(at, -1)
    index = dict(hook.part).get(hook.axes.index(axes[0])) if len(axes) == 1 else None
    if index is None:
        return at
    if isinstance(index, slice):
        return at * (index.step or 1) + (index.start or 0)
    return torch.tensor(index)[at]


def _shares(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
