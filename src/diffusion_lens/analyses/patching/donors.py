"""What is put in the place of the base's values: those of another run, zeros, means, others'."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from diffusion_lens import ActivationCache, HookContext, HookedDiffusion, Run, Site
from diffusion_lens.analyses.patching.pair import Pair
from diffusion_lens.errors import PatchingError

SiteOf = Mapping[str, Site]
"""What is recorded of each hook point."""


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
            latents, self.values = _recorded(model, run, sites, steps)
        return latents

    def __call__(self, activation: Tensor, hook: HookContext) -> Tensor:  # noqa: ARG002
        """The source's value."""
        return _value_at(self.values, hook, "the source")


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
class OtherRuns:
    """Values of other prompts, or of the base's other samples.

    Attributes:
        prompts: The other prompts; sample number i takes the one of number i, from the first on
            again where there are fewer. None stands for the base's own.
        mean: Take the mean over all of them and over tokens, in place of one of them.
    """

    prompts: tuple[str, ...]
    mean: bool
    samples: int = 0
    values: ActivationCache = field(default_factory=ActivationCache)

    def record(self, model: HookedDiffusion, pair: Pair, sites: SiteOf, steps: Any) -> None:
        """Run the other prompts, with the noise of the base's samples."""
        self.samples = len(pair.seeds)
        if not self.prompts:
            run = pair.batch(pair.base, range(self.samples))
        else:
            rows = max(self.samples, len(self.prompts)) if self.mean else self.samples
            run = self._run(pair, rows)
        _, self.values = _recorded(model, run, sites, steps)

    def _run(self, pair: Pair, rows: int) -> Run:
        at = [row % self.samples for row in range(rows)]
        settings = dict(pair.base.run.settings)
        if isinstance(settings.get("negative_prompt"), str):  # some pipelines want lists of both
            settings["negative_prompt"] = [settings["negative_prompt"]] * rows
        if pair.latents is not None:
            settings["latents"] = pair.latents[at]
        prompts = [self.prompts[row % len(self.prompts)] for row in range(rows)]
        return Run(prompts, seed=tuple(pair.seeds[sample] for sample in at), **settings)

    def __call__(self, activation: Tensor, hook: HookContext) -> Tensor:  # noqa: ARG002
        """The mean, or the value of the other prompt, or of the next sample."""
        found = _value_at(self.values, hook, "the other runs")
        if not self.mean:
            return found if self.prompts else found.roll(-1, dims=0)
        tokens = [hook.axis(axis) for axis in ("pos", "query") if axis in hook.axes]
        mean = found.mean([0, *tokens], keepdim=True)
        return mean.expand(self.samples, *found.shape[1:])


def _recorded(
    model: HookedDiffusion, run: Run, sites: SiteOf, steps: Any
) -> tuple[Tensor, ActivationCache]:
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


def _value_at(values: ActivationCache, hook: HookContext, whose: str) -> Tensor:
    found = values.entries.get((hook.name, hook.branch))
    if found is None or hook.step not in found:
        raise PatchingError(
            f"{hook.name} fired in branch {hook.branch!r} at step {hook.step} of the base, but "
            f"not of {whose}: both need the same guidance and number of steps"
        )
    return found[hook.step]
