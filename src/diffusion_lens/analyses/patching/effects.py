"""Effects of what a sweep changed, part by part, along named axes."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, TypeVar

import torch
from torch import Tensor

from diffusion_lens.analyses.saving import Saved
from diffusion_lens.border import Count, public
from diffusion_lens.errors import ResultError, closest
from diffusion_lens.metrics.intervals import bootstrap_interval, rank_correlation
from diffusion_lens.showing.one_line import counted, one_line

Grid = TypeVar("Grid", bound="Effects")


@dataclass(frozen=True, kw_only=True)
class Effects(Saved):
    """Effects along named axes, with intervals over samples.

    Attributes:
        effects: Mean over samples; nan where there is nothing to change, or every sample was
            dropped.
        low: Lower end of the bootstrap interval over samples.
        high: Its upper end.
        samples: The effect in each sample, on a last axis; nan where it was dropped.
        axes: Names of the axes.
        labels: What the entries along each axis stand for.
        seeds: The seed of each sample.
        base: Scores of the run that was changed, axes step and sample.
        left_out: Hook points that were not changed, with the reason.
        level: Share of the bootstrap's means between `low` and `high`.
        made_by: What was run and how.
    """

    effects: Tensor
    low: Tensor
    high: Tensor
    samples: Tensor
    axes: tuple[str, ...]
    labels: dict[str, tuple[Any, ...]]
    seeds: tuple[int, ...]
    base: Tensor
    left_out: dict[str, str]
    level: float = 0.95
    made_by: dict[str, Any] = field(default_factory=dict, repr=False)

    @public
    def at(self: Grid, **chosen: int | str | None) -> Grid:
        """The part of the grid with some labels, such as `at(block=3, stream="img")`.

        Raises:
            ResultError: If there is no such axis or label.
        """
        values = {name: getattr(self, name) for name in ("effects", "low", "high", "samples")}
        axes = list(self.axes)
        for axis, label in chosen.items():
            self._refuse_unknown(axis, label)
            place = axes.index(axis)
            number = self.labels[axis].index(label)
            values = {name: value.select(place, number) for name, value in values.items()}
            axes.remove(axis)
        kept = {
            name: value
            for name, value in vars(self).items()
            if name not in values and name not in ("axes", "labels")
        }
        labels = {axis: self.labels[axis] for axis in axes}
        return type(self)(**values, axes=tuple(axes), labels=labels, **kept)

    def records(self) -> list[dict[str, Any]]:
        """One dict for each part: its labels, effect, interval and number of samples."""
        places = product(*(range(len(self.labels[axis])) for axis in self.axes))
        return [
            {
                **{axis: self.labels[axis][n] for axis, n in zip(self.axes, place, strict=True)},
                "effect": float(self.effects[place]),
                "low": float(self.low[place]),
                "high": float(self.high[place]),
                "samples": int((~self.samples[place].isnan()).sum()),
            }
            for place in places
            if not self.effects[place].isnan()
        ]

    def to_dataframe(self) -> Any:
        """The records as a pandas DataFrame.

        Raises:
            ResultError: If pandas is not installed.
        """
        try:
            pandas = importlib.import_module("pandas")
        except ImportError:
            raise ResultError(
                "to_dataframe() needs pandas, which is not installed: `pip install pandas`, or "
                "take the same rows from `records()`"
            ) from None
        return pandas.DataFrame.from_records(self.records())

    @public
    def top(self, count: Count = 10) -> list[dict[str, Any]]:
        """The records with the largest effects, largest first."""
        return sorted(self.records(), key=lambda one: -self._size(one["effect"]))[:count]

    @staticmethod
    def _size(effect: float) -> float:
        """How large an effect is."""
        return effect

    @public
    def rank_correlation(self, other: Effects) -> float:
        """Spearman's correlation of the mean effects with those of another result.

        Raises:
            ResultError: If the grids differ.
        """
        if (self.axes, dict(self.labels)) != (other.axes, dict(other.labels)):
            raise ResultError(
                f"the results have different grids: axes {self.axes} and {other.axes}; run both "
                "with the same sites, axes and steps"
            )
        return rank_correlation(self.effects, other.effects)

    def _figure(self, *, value: str, bar_value: str, marks: dict[float, str], **said: Any) -> Any:
        """Bars with intervals for one axis, otherwise a grid.

        Args:
            value: What the colours of a grid are.
            bar_value: What the height of bars is.
            marks: Values that mean something, with what they mean.
            **said: Title and note.
        """
        from diffusion_lens import viz

        names = [str(label) for label in self.labels[self.axes[-1]]] if self.axes else ["all"]
        if len(self.axes) < 2:
            ends = (self.effects, self.low, self.high)
            values, low, high = (end.reshape(-1).tolist() for end in ends)
            intervals = dict(zip(names, zip(low, high, strict=True), strict=True))
            bars = dict(zip(names, values, strict=True))
            axis = self.axes[-1] if self.axes else ""
            return viz.bars(bars, intervals=intervals, x_title=axis, y_title=bar_value, **said)
        first = self.axes[:-1]
        apart = "." if first == ("block", "head") else " "  # a head is called 8.0, as everywhere
        places = list(product(*(self.labels[axis] for axis in first)))
        rows = [apart.join(map(str, place)) for place in places]
        modules = [self._module(place, first) for place in places]
        cells = [
            [f"head {row}.{name}" + (f" ({module})" if module else "") for name in names]
            for row, module in zip(rows, modules, strict=True)
        ]
        return viz.head_grid(
            self.effects.flatten(0, -2),
            rows=rows,
            columns=names,
            value_name=value,
            zero_centred=True,
            marks=marks,
            row_title="head (block.head)" if first == ("block", "head") else ", ".join(first),
            column_title=self.axes[-1],
            row_notes=modules,
            column_notes=[
                self._module((one,), self.axes[-1:]) for one in self.labels[self.axes[-1]]
            ],
            cells=cells if self.axes == ("block", "head") else None,
            **said,
        )

    def _module(self, place: Sequence[Any], axes: Sequence[str]) -> str:
        """The module that is patched at a place; empty where it is not one, or not known."""
        modules = self.made_by.get("modules", {})
        return modules.get(place[axes.index("block")], "") if "block" in axes else ""

    def _told(self, what: str, *, nothing: str) -> str:
        """Size of the grid and the largest effects."""
        grid = " x ".join(f"{len(self.labels[axis])} {axis}" for axis in self.axes) or "one part"
        best = "; ".join(
            ", ".join(f"{axis} {one[axis]}" for axis in self.axes) + f": {one['effect']:.3f}"
            for one in self.top(3)
        )
        return f"{what}, {grid}, {counted(len(self.seeds), 'sample')}; {best or nothing}"

    def _in_one_line(self, what: str, *, nothing: str) -> str:
        """What was done, grid, samples and the largest effect."""
        sizes = [counted(len(self.labels[axis]), axis) for axis in self.axes]
        best = self.top(1)
        place = ", ".join(f"{axis} {best[0][axis]}" for axis in self.axes) if best else ""
        return one_line(
            self,
            f"{what}, {' x '.join(sizes) or 'one part'}",
            counted(len(self.seeds), "sample"),
            f"largest effect {best[0]['effect']:.3f} {f'at {place}' if place else ''}"
            if best
            else nothing,
            made_by=self.made_by,
            look=(".top()", ".records()", ".plot()"),
        )

    def _refuse_unknown(self, axis: str, label: Any) -> None:
        known = self.labels.get(axis, self.axes)
        asked = label if axis in self.labels else axis
        if asked not in known or axis not in self.labels:
            near = closest(str(asked), map(str, known), count=1)
            hint = f" Closest: {near[0]!r}." if near else ""
            what = f"label {label!r} along {axis!r}" if axis in self.labels else f"axis {axis!r}"
            raise ResultError(f"this result has no {what}; there are {tuple(known)}.{hint}")


def gathered(
    effects: Tensor,
    *,
    places: Sequence[tuple[int, ...]],
    axes: Sequence[str],
    labels: Mapping[str, tuple[Any, ...]],
    steps: tuple[int, ...],
    level: float,
) -> dict[str, Any]:
    """Effects of cells laid out along axes, with their means and intervals.

    Args:
        effects: Axes cell, step, sample.
        places: Place of each cell in the grid of all axes but `step`.
        axes: The axes; without `step` among them the mean goes over steps.
        labels: Labels along all axes but `step`.
        steps: The steps.
        level: Of the intervals.

    Returns:
        The fields of a result that follow from them.
    """
    apart = [axis for axis in axes if axis != "step"]
    shape = [len(labels[axis]) for axis in apart]
    grid = torch.full((*shape, *effects.shape[1:]), torch.nan, dtype=effects.dtype)
    for place, found in zip(places, effects, strict=True):
        grid[place] = found
    if "step" in axes:
        samples = grid.movedim(len(apart), list(axes).index("step"))
    else:
        samples = grid.nanmean(-2)
    low, high = bootstrap_interval(samples, level=level)
    everything = {**labels, "step": steps}
    return {
        "effects": samples.nanmean(-1),
        "low": low,
        "high": high,
        "samples": samples,
        "axes": tuple(axes),
        "labels": {axis: tuple(everything[axis]) for axis in axes},
        "level": level,
    }
