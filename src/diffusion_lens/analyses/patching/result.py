"""What sweeps of patches and of ablations found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diffusion_lens.analyses.patching.effects import Effects
from diffusion_lens.border import public
from diffusion_lens.showing.one_line import counted

EXACT = (
    "Vig et al., Causal mediation analysis, NeurIPS 2020; Meng et al., ROME, NeurIPS 2022, arXiv "
    "2202.05262; for text-to-image models Basu et al., ICLR 2024, arXiv 2310.13730"
)
ABLATED = (
    "Michel et al., Are sixteen heads really better than one?, NeurIPS 2019, arXiv 1905.10650; "
    "Wang et al., Interpretability in the wild, ICLR 2023, arXiv 2211.00593"
)

NOTHING = "no effects: source and base score alike everywhere, or the metric gave nan"
NO_EFFECT = "no effects: the metric gave nan"

PUT_IN = {
    "zero": "zeros",
    "mean": "the mean over reference runs and positions",
    "resample": "another run's value",
}


@dataclass(frozen=True, kw_only=True, repr=False)
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
        """A figure: bars with intervals for one axis, otherwise a grid."""
        return self._figure(
            value="effect (share of the way)",
            bar_value="effect (0 base, 1 source)",
            marks={0: "as the base", 1: "as the source"},
            title=title or f"{self.method.capitalize()} patching",
            note=self._meaning(),
        )

    def _meaning(self) -> str:
        """What an effect is, with the prompts where they are known."""
        runs = [self.made_by.get(name) for name in ("clean", "corrupted")]
        if self.made_by.get("direction") == "noise":
            runs.reverse()
        source, base = (_prompt(run) for run in runs)
        return (
            f"Effect of putting activations of the source{source} into the base{base}: 0, it stays "
            "as it is; 1, it becomes as the source. Mean over "
            f"{counted(len(self.seeds), 'sample')}."
        )

    def __str__(self) -> str:
        """Size of the grid and the largest effects."""
        return self._told(f"{self.method} patching", nothing=NOTHING)

    def __repr__(self) -> str:
        """Method, grid, samples and the largest effect in one line."""
        return self._in_one_line(f"{self.method} patching", nothing=NOTHING)


@dataclass(frozen=True, kw_only=True, repr=False)
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

    @staticmethod
    def _size(effect: float) -> float:
        """How large an effect is: a metric can fall as well as rise."""
        return abs(effect)

    @public
    def plot(self, *, title: str | None = None) -> Any:
        """A figure: bars with intervals for one axis, otherwise a grid."""
        prompt = _prompt(self.made_by.get("run"))
        return self._figure(
            value="change of the metric",
            bar_value="change of the metric (0 intact)",
            marks={0: "as intact"},
            title=title or f"{self.value.capitalize()} ablation",
            note=(
                f"Metric of the run{prompt} with {PUT_IN[self.value]} in place of a part, minus "
                f"that of the intact run. Mean over {counted(len(self.seeds), 'sample')}."
            ),
        )

    def __str__(self) -> str:
        """Size of the grid and the largest effects."""
        return self._told(f"{self.value} ablation", nothing=NO_EFFECT)

    def __repr__(self) -> str:
        """What was put in, grid, samples and the largest effect in one line."""
        return self._in_one_line(f"{self.value} ablation", nothing=NO_EFFECT)


def _prompt(run: Any) -> str:
    """A run's prompt in quotation marks, behind a space; empty where it is not known."""
    prompt = run.get("prompt") if isinstance(run, Mapping) else None
    return f" “{prompt}”" if isinstance(prompt, str) else ""
