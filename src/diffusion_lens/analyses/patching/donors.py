"""What is put in the place of the base's values: those of another run, zeros, means, others'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from diffusion_lens import ActivationCache, HookContext, HookedDiffusion, Run, Site
from diffusion_lens.analyses.patching.pair import Pair
from diffusion_lens.analyses.patching.references import References
from diffusion_lens.analyses.patching.several import several_samples
from diffusion_lens.errors import PatchingError

SiteOf = Mapping[str, Site]
"""What is recorded of each hook point."""
Key = tuple[str, str]
"""A hook point and a branch."""
Values = Mapping[Key, Mapping[int, Tensor]]
"""What was recorded of them at each step."""
POSITIONS = ("pos", "query", "frame", "height", "width")
"""Axes along which positions lie; latents are tokens in some families and have sides in others."""


@runtime_checkable  # for the types that tests check
class Donor(Protocol):
    """Gives the values of a sweep over whole runs."""

    def record(
        self, model: HookedDiffusion, pair: Pair, sites: SiteOf, steps: Any
    ) -> Tensor | None:
        """Run what the values come from, once.

        Args:
            model: The model.
            pair: Its base is what is patched.
            sites: What is patched of each hook point.
            steps: Steps of hook points whose Site says none; None for all.

        Returns:
            The final latents of every sample, where they are the aim of patching.
        """
        ...

    def __call__(self, activation: Tensor, hook: HookContext) -> Tensor:
        """What stands in for an activation of the base, for every sample of the sweep."""
        ...


@dataclass(eq=False)
class SourceRun:
    """The values of the pair's source."""

    values: ActivationCache = field(default_factory=ActivationCache)

    def record(self, model: HookedDiffusion, pair: Pair, sites: SiteOf, steps: Any) -> Tensor:
        """Run the source."""
        run = pair.batch(pair.source, range(len(pair.seeds)))
        with pair.source.encoding(model):
            latents, self.values = recorded(model, run, sites, steps)
        return latents

    def __call__(self, activation: Tensor, hook: HookContext) -> Tensor:  # noqa: ARG002
        """The source's value."""
        return _value_at(self.values.entries, hook, "the source")


@dataclass(eq=False)
class Zeros:
    """Zeros."""

    samples: int = 0

    def record(self, model: HookedDiffusion, pair: Pair, sites: SiteOf, steps: Any) -> None:  # noqa: ARG002
        """Nothing has to run."""
        self.samples = len(pair.seeds)

    def __call__(self, activation: Tensor, hook: HookContext) -> Tensor:  # noqa: ARG002
        """Zeros."""
        return activation.new_zeros((self.samples, *activation.shape[1:]))


@dataclass(eq=False)
class MeanOfRuns:
    """The mean over reference runs and over positions, at the same step.

    Attributes:
        references: The runs.
    """

    references: References
    samples: int = 0
    values: dict[Key, dict[int, Tensor]] = field(default_factory=dict)

    def record(self, model: HookedDiffusion, pair: Pair, sites: SiteOf, steps: Any) -> None:
        """Run the references; of each batch its mean is kept."""
        self.samples = len(pair.seeds)
        rows = max(self.samples, len(self.references.prompts))
        parts: dict[Key, dict[int, list[Tensor]]] = {}
        counts: list[int] = []
        for run in self.references.batches(pair, rows=rows):
            _, values = recorded(model, run, sites, steps)
            counts.append(run.samples)
            for key, at in values.entries.items():
                over = [0, *positions_of(values.axes[key[0]])]
                for step, value in at.items():
                    mean = value.mean(over, keepdim=True)
                    parts.setdefault(key, {}).setdefault(step, []).append(mean)
        self.values = {
            key: {step: weighted(means, counts) for step, means in at.items()}
            for key, at in parts.items()
        }

    def __call__(self, activation: Tensor, hook: HookContext) -> Tensor:
        """The mean, at every position of every sample."""
        mean = _value_at(self.values, hook, "the reference runs")
        shape = [self.samples, *mean.shape[1:]]
        for place in positions_of(hook.axes):
            shape[place] = activation.shape[place]
        return mean.expand(shape)


@dataclass(eq=False)
class ValuesOfRuns:
    """What reference runs say, one for each sample: another prompt's, or the next sample's own.

    Attributes:
        references: The runs.
    """

    references: References
    values: dict[Key, dict[int, Tensor]] = field(default_factory=dict)

    def record(self, model: HookedDiffusion, pair: Pair, sites: SiteOf, steps: Any) -> None:
        """Run the references."""
        parts: dict[Key, dict[int, list[Tensor]]] = {}
        for run in self.references.batches(pair, rows=len(pair.seeds)):
            _, values = recorded(model, run, sites, steps)
            for key, at in values.entries.items():
                for step, value in at.items():
                    parts.setdefault(key, {}).setdefault(step, []).append(value)
        self.values = {
            key: {step: torch.cat(found) for step, found in at.items()} for key, at in parts.items()
        }

    def __call__(self, activation: Tensor, hook: HookContext) -> Tensor:  # noqa: ARG002
        """The value of the sample's reference run, or of the next sample."""
        found = _value_at(self.values, hook, "the reference runs")
        return found if self.references.prompts else found.roll(-1, dims=0)


def positions_of(axes: Sequence[str]) -> list[int]:
    """The axes that positions lie along: tokens, or the places of latents and feature maps."""
    return [place for place, axis in enumerate(axes) if axis in POSITIONS]


def weighted(means: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """The mean over all rows, from those of batches."""
    if len(means) == 1:
        return means[0]
    wide = torch.promote_types(means[0].dtype, torch.float32)
    parts = [mean.to(wide) * count for mean, count in zip(means, counts, strict=True)]
    return (sum(parts, torch.zeros_like(parts[0])) / sum(counts)).to(means[0].dtype)


def recorded(
    model: HookedDiffusion, run: Run, sites: SiteOf, steps: Any
) -> tuple[Tensor, ActivationCache]:
    """The final latents of a run, and its values."""
    with several_samples(model, run):
        out, values = model.run_with_cache(
            run,
            names_filter=list(sites.values()),
            steps=steps,
            branch="all",
            output_type="latent",
            show_progress=False,
        )
    assert out.latents is not None
    return out.latents, values


def _value_at(values: Values, hook: HookContext, whose: str) -> Tensor:
    found = values.get((hook.name, hook.branch))
    if found is None or hook.step not in found:
        raise PatchingError(
            f"{hook.name} fired in branch {hook.branch!r} at step {hook.step} of the base, but "
            f"not of {whose}: both need the same guidance and number of steps"
        )
    return found[hook.step]
