"""A table of hook points: what there is, how large, where in diffusers, what is missing and why."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from diffusion_lens.activation_cache import readable_bytes
from diffusion_lens.architectures.forms import patches
from diffusion_lens.architectures.sources import AtModule, ProductWeights
from diffusion_lens.engine.wiring import Wiring
from diffusion_lens.engine.words import tokenizer_of
from diffusion_lens.errors import UnknownHookPointError
from diffusion_lens.hook_points.names import NamePattern, matches, which_denoiser
from diffusion_lens.hook_points.point import HookPoint
from diffusion_lens.showing.one_line import counted

HEADER = ("hook point", "axes", "shape", "heads", "grid", "bytes", "module", "note")


@dataclass(frozen=True)
class HookRow:
    """One hook point.

    Attributes:
        name: Its name.
        axes: Its axes.
        shape: Sizes for one prompt at the model's native size, with the text length that is usual
            for the family; None where they are not known.
        heads: Number of heads, or None.
        grid: Token grid of the image there.
        nbytes: Bytes of one activation of that shape in the model's precision, or None. (Scores and
            patterns of half-precision models are float32, twice as much.)
        module: The native module that it is read at.
        note: Why edits have no effect, or why the name is absent; empty otherwise.
        present: Whether the model has it.
    """

    name: str
    axes: tuple[str, ...]
    shape: tuple[int | None, ...]
    heads: int | None
    grid: tuple[int, ...]
    nbytes: int | None
    module: str
    note: str
    present: bool = True

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        if not self.present:
            return (self.name, "", "", "", "", "", "", f"absent: {self.note}")
        shape = "x".join("?" if size is None else str(size) for size in self.shape)
        return (
            self.name,
            " ".join(self.axes),
            shape,
            "" if self.heads is None else str(self.heads),
            "x".join(map(str, self.grid)),
            "" if self.nbytes is None else readable_bytes(self.nbytes),
            self.module,
            f"dead: {self.note}" if self.note else "",
        )


@dataclass(frozen=True)
class HookTable:
    """Rows of hook points; prints as text and in notebooks.

    Attributes:
        title: What it is a table of.
        rows: The rows.
    """

    title: str
    rows: tuple[HookRow, ...]

    def __iter__(self) -> Iterator[HookRow]:
        """The rows."""
        return iter(self.rows)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def __str__(self) -> str:
        """Aligned columns."""
        cells = [HEADER, *(row.cells() for row in self.rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(HEADER))]
        lines = (
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in cells
        )
        return "\n".join((self.title, *lines))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in HEADER)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row.cells()) + "</tr>"
            for row in self.rows
        )
        caption = f"<caption>{html.escape(self.title)}</caption>"
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def hook_table(wiring: Wiring, pattern: NamePattern) -> HookTable:
    """The table of the hook points that match; see `HookedDiffusion.hook_table`."""
    absent = [
        HookRow(missing.name, (), (), None, (), None, "", missing.reason, present=False)
        for missing in wiring.absent(pattern)
        if matches(pattern, missing.name)
    ]
    try:
        found = wiring.find(pattern)
    except UnknownHookPointError:
        if not absent:
            raise
        found = {}
    dtype = wiring.denoiser.dtype  # diffusers walks all modules for it
    rows = [_row(wiring, point, dtype) for point in found.values()]
    return HookTable(f"{wiring.called}: {counted(len(rows), 'hook point')}", (*rows, *absent))


def _row(wiring: Wiring, point: HookPoint, dtype: torch.dtype) -> HookRow:
    grid = wiring.spec.default_grid(wiring.denoiser, point.level)
    tokens = {"img": int(torch.Size(grid).numel()), "txt": _text_tokens(wiring)}
    tokens |= wiring.tracker.companion_tokens
    more = _sides(wiring, point, grid) | _channels(wiring, point)
    known = zip(point.axes, point.shape(tokens, batch=1), strict=True)
    shape = tuple(more.get(axis) if size is None else size for axis, size in known)
    count = None if None in shape else math.prod(size for size in shape if size is not None)
    return HookRow(
        name=point.name,
        axes=point.axes,
        shape=shape,
        heads=point.heads,
        grid=grid,
        nbytes=None if count is None else count * _itemsize(point, dtype),
        module=point.module,
        note=point.dead or "",
    )


def _sides(wiring: Wiring, point: HookPoint, grid: tuple[int, ...]) -> dict[str, int]:
    """Height and width of what has them: the grid's, times the side of a patch (1 in a U-Net)."""
    if not {"height", "width"} <= set(point.axes):
        return {}
    config = getattr(wiring.denoiser, "config", {})
    rows, columns = patches(config)[-2:] if config.get("patch_size") else (1, 1)
    height, width = grid[-2:]
    return {"height": height * rows, "width": width * columns}


def _channels(wiring: Wiring, point: HookPoint) -> dict[str, int | None]:
    """The channels that a module takes or gives, where it says so."""
    if "channel" not in point.axes or not isinstance(point.source, AtModule):
        return {}
    border = point.source.point
    taken = border.argument is not None
    if taken and border.argument not in ((wiring.spec.latents,), ("hidden_states",)):
        return {}
    module = wiring.denoisers[which_denoiser(point.name)].get_submodule(border.module)
    config = getattr(module, "config", vars(module))
    if taken or config.get("out_channels", 0) is None:  # None: as many leave as enter
        return {"channel": config.get("in_channels")}
    return {"channel": config.get("out_channels")}


def _text_tokens(wiring: Wiring) -> int:
    """Length of the text stream by default: the tokenizer's limit where one fills it."""
    parts = wiring.spec.text_parts
    tokenizer = tokenizer_of(wiring.pipe, parts[0])
    if len(parts) > 1 or tokenizer is None:
        return wiring.spec.text_tokens
    return min(wiring.spec.text_tokens, tokenizer.model_max_length)


def _itemsize(point: HookPoint, dtype: torch.dtype) -> int:
    """Bytes of one number: scores and patterns are float32 in half-precision models."""
    weights = isinstance(point.source, ProductWeights)
    return (torch.promote_types(dtype, torch.float32) if weights else dtype).itemsize
