"""What a patching sweep found."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from torch import Tensor

from diffusion_lens.analyses.saving import Saved
from diffusion_lens.border import Count, public
from diffusion_lens.border.one_line import counted, one_line
from diffusion_lens.errors import ResultError, closest
from diffusion_lens.metrics.intervals import bootstrap_interval, rank_correlation

EXACT = (
    "Vig et al., Causal mediation analysis, NeurIPS 2020; Meng et al., ROME, NeurIPS 2022, arXiv "
    "2202.05262; for text-to-image models Basu et al., ICLR 2024, arXiv 2310.13730"
)

NOTHING = "no effects: source and base score alike everywhere, or the metric gave nan"


@dataclass(frozen=True)
class PatchingResult(Saved):
    """Effects of patches along named axes: 0 is the base as it was, 1 is as if it were the source.

    Attributes:
        effects: Mean over samples; nan where there is nothing to patch, or every sample was
            dropped.
        low: Lower end of the bootstrap interval over samples.
        high: Its upper end.
        samples: The effect in each sample, on a last axis; nan where it was dropped, since source
            and base score alike there.
        axes: Names of the axes.
        labels: What the entries along each axis stand for.
        seeds: The seed of each sample.
        source: The source's scores, axes step and sample.
        base: The base's, likewise.
        left_out: Hook points that were not patched, with the reason.
        method: `"exact"`, or which attribution.
        level: Share of the bootstrap's means between `low` and `high`.
        made_by: What was run and how.
        citation: What to cite.
    """

    effects: Tensor
    low: Tensor
    high: Tensor
    samples: Tensor
    axes: tuple[str, ...]
    labels: dict[str, tuple[Any, ...]]
    seeds: tuple[int, ...]
    source: Tensor
    base: Tensor
    left_out: dict[str, str]
    method: str = "exact"
    level: float = 0.95
    made_by: dict[str, Any] = field(default_factory=dict, repr=False)
    citation: str = EXACT

    @public
    def at(self, **chosen: int | str | None) -> PatchingResult:
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
        return PatchingResult(**values, axes=tuple(axes), labels=labels, **kept)

    def records(self) -> list[dict[str, Any]]:
        """One dict for each patch: its labels, effect, interval and number of samples."""
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
        return sorted(self.records(), key=lambda one: -one["effect"])[:count]

    @public
    def rank_correlation(self, other: PatchingResult) -> float:
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

    @public
    def plot(self, *, title: str | None = None) -> Any:
        """A figure: bars with intervals for one axis, curves over steps, otherwise a grid."""
        from diffusion_lens import viz

        names = [str(label) for label in self.labels[self.axes[-1]]] if self.axes else ["all"]
        said = {"title": title or f"{self.method.capitalize()} patching", "note": self._meaning()}
        if len(self.axes) < 2:
            ends = (self.effects, self.low, self.high)
            values, low, high = (end.reshape(-1).tolist() for end in ends)
            intervals = dict(zip(names, zip(low, high, strict=True), strict=True))
            bars = dict(zip(names, values, strict=True))
            axis = self.axes[-1] if self.axes else ""
            y_title = "effect (0 base, 1 source)"
            return viz.bars(bars, intervals=intervals, x_title=axis, y_title=y_title, **said)
        first = self.axes[:-1]
        apart = "." if first == ("block", "head") else " "  # a head is called 8.0, as everywhere
        rows = [
            apart.join(map(str, place)) for place in product(*(self.labels[axis] for axis in first))
        ]
        cells = [[f"head {row}.{name}" for name in names] for row in rows]
        return viz.head_grid(
            self.effects.flatten(0, -2),
            rows=rows,
            columns=names,
            value_name="effect (share of the way)",
            zero_centred=True,
            marks={0: "as the base", 1: "as the source"},
            row_title="head (block.head)" if first == ("block", "head") else ", ".join(first),
            column_title=self.axes[-1],
            cells=cells if self.axes == ("block", "head") else None,
            **said,
        )

    def _meaning(self) -> str:
        """What an effect is, with the prompts where they are known."""
        runs = [self.made_by.get(name) for name in ("clean", "corrupted")]
        if self.made_by.get("direction") == "noise":
            runs.reverse()
        source, base = (_prompt(run) for run in runs)
        return (
            f"Effect of putting activations of the source{source} into the base{base}: 0, it stays "
            f"as it is; 1, it becomes as the source. Mean over {len(self.seeds)} samples."
        )

    def __str__(self) -> str:
        """Size of the grid and the largest effects."""
        grid = " x ".join(f"{len(self.labels[axis])} {axis}" for axis in self.axes) or "one patch"
        best = "; ".join(
            ", ".join(f"{axis} {one[axis]}" for axis in self.axes) + f": {one['effect']:.3f}"
            for one in self.top(3)
        )
        return f"{self.method} patching, {grid}, {len(self.seeds)} samples; {best or NOTHING}"

    def __repr__(self) -> str:
        """Method, grid, samples and the largest effect in one line."""
        sizes = [counted(len(self.labels[axis]), axis) for axis in self.axes]
        best = self.top(1)
        place = ", ".join(f"{axis} {best[0][axis]}" for axis in self.axes) if best else ""
        return one_line(
            self,
            f"{self.method} patching, {' x '.join(sizes) or 'one patch'}",
            counted(len(self.seeds), "sample"),
            f"largest effect {best[0]['effect']:.3f} {f'at {place}' if place else ''}"
            if best
            else NOTHING,
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


def _prompt(run: Any) -> str:
    """A run's prompt in quotation marks, behind a space; empty where it is not known."""
    prompt = run.get("prompt") if isinstance(run, Mapping) else None
    return f" “{prompt}”" if isinstance(prompt, str) else ""


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
        The fields of a `PatchingResult` that follow from them.
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
