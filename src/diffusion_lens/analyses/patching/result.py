"""What sweeps of patches and of ablations found."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

from torch import Tensor

from diffusion_lens.analyses.patching.effects import Effects
from diffusion_lens.border import public

EXACT = (
    "Vig et al., Causal mediation analysis, NeurIPS 2020; Meng et al., ROME, NeurIPS 2022, arXiv "
    "2202.05262; for text-to-image models Basu et al., ICLR 2024, arXiv 2310.13730"
)
ABLATED = (
    "Michel et al., Are sixteen heads really better than one?, NeurIPS 2019, arXiv 1905.10650; "
    "Wang et al., Interpretability in the wild, ICLR 2023, arXiv 2211.00593"
)

NOTHING = "no effects: source and base score alike everywhere, or the metric gave nan"


@dataclass(frozen=True, kw_only=True)
class PatchingResult(Effects):
    """Effects of patches along named axes: 0 is the base as it was, 1 is as if it were the source.

    Samples are dropped where source and base score alike.

    Attributes:
        source: The source's scores, axes step and sample.
        method: `"exact"`, or which attribution.
        citation: What to cite.
    """

    source: Tensor
    method: str = "exact"
    citation: str = EXACT

    @public
    def plot(self, *, title: str | None = None) -> Any:
        """A figure: bars with intervals for one axis, curves over steps, otherwise a grid."""
        from diffusion_lens import viz

        names = [str(label) for label in self.labels[self.axes[-1]]] if self.axes else ["all"]
        if len(self.axes) < 2:
            ends = (self.effects, self.low, self.high)
            values, low, high = (end.reshape(-1).tolist() for end in ends)
            intervals = dict(zip(names, zip(low, high, strict=True), strict=True))
            bars = dict(zip(names, values, strict=True))
            return viz.bars(bars, intervals=intervals, y_title="effect", title=title)
        rows = [
            " ".join(map(str, place))
            for place in product(*(self.labels[axis] for axis in self.axes[:-1]))
        ]
        return viz.head_grid(
            self.effects.flatten(0, -2),
            rows=rows,
            columns=names,
            value_name="effect",
            zero_centred=True,
            row_title=", ".join(self.axes[:-1]),
            column_title=self.axes[-1],
            title=title,
        )

    def __str__(self) -> str:
        """Size of the grid and the largest effects."""
        grid = " x ".join(f"{len(self.labels[axis])} {axis}" for axis in self.axes) or "one patch"
        best = "; ".join(
            ", ".join(f"{axis} {one[axis]}" for axis in self.axes) + f": {one['effect']:.3f}"
            for one in self.top(3)
        )
        return f"{self.method} patching, {grid}, {len(self.seeds)} samples; {best or NOTHING}"


@dataclass(frozen=True, kw_only=True)
class AblationResult(Effects):
    """Effects of ablations along named axes: how far a metric moved from the intact run's.

    In units of the metric: the ablated run's score minus the intact one's. With the default metric,
    a distance, 0 means that nothing changed, and more is a larger change.

    Attributes:
        value: What was put in: `"zero"`, `"mean"` or `"resample"`.
        citation: What to cite.
    """

    value: str
    citation: str = ABLATED
