"""What a collection will take, told by the first step of its first sample."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from diffusion_lens import HookContext, Site
from diffusion_lens.activation_cache import readable_bytes
from diffusion_lens.activations.gathering import Gatherer, Record, record_of
from diffusion_lens.activations.plan import Plan, alone
from diffusion_lens.authoring import beginning
from diffusion_lens.errors import CacheBudgetError, EngineError, StoreError, listing
from diffusion_lens.long_runs.batching import part_of
from diffusion_lens.showing.one_line import counted

INDEX_BYTES = 4
"""About what the index takes of the disk for each row; small tables take more."""


@dataclass(frozen=True)
class Foreseen:
    """What a collection will take.

    Attributes:
        samples: Images or videos.
        batches: Runs of the pipeline.
        steps: Steps of each.
        evaluations: Evaluations of the denoiser in all of them.
        rows: Rows of each sample.
        nbytes: Bytes of each sample on the disk, without its image.
        widths: The width of each site's rows.
    """

    samples: int
    batches: int
    steps: int
    evaluations: int
    rows: int
    nbytes: int
    widths: Mapping[str, int]

    def refuse_over(self, folder: Path, *, share: float, max_bytes: int | None) -> None:
        """Refuse what does not fit on the disk, or is more than was allowed.

        Args:
            folder: Where the store lies.
            share: The share of the samples that is not there yet.
            max_bytes: The most that the whole store may take; None for what the disk has.

        Raises:
            CacheBudgetError: With the number, and how to narrow it.
        """
        wanted = self.nbytes * self.samples
        free = shutil.disk_usage(folder).free
        if max_bytes is not None and wanted > max_bytes:
            refused = f"max_bytes= allows {readable_bytes(max_bytes)}"
        elif wanted * share > free:
            refused = f"the disk of {folder} has {readable_bytes(free)} free"
        else:
            return
        raise CacheBudgetError(
            f"this collection would take {readable_bytes(wanted)} ({self}), and {refused}. Narrow "
            "it with sites=, steps=, tokens=64, dtype=torch.float16, fewer prompts or seeds"
        )

    def __str__(self) -> str:
        """The numbers in one line."""
        return (
            f"{self.rows * self.samples:,} rows of {counted(len(self.widths), 'site')}, "
            f"{counted(self.samples, 'sample')}, {counted(self.steps, 'step')}, "
            f"{self.evaluations:,} evaluations of the denoiser"
        )


@dataclass(frozen=True)
class _Kind:
    rows: int
    width: int
    nbytes: int
    site: Site


@dataclass(frozen=True)
class _Measuring:
    """Keeps the sizes of what a Site shows, and nothing else."""

    site: Site
    gatherer: Gatherer
    kinds: dict[tuple[str, str], _Kind] = field(repr=False)
    read_only = True

    def __call__(self, activation: Tensor, hook: HookContext) -> None:
        if (hook.name, hook.branch) not in self.kinds:
            values = record_of(activation, hook, self.gatherer).values
            kind = _Kind(len(values), values.shape[1], values.nbytes, self.site)
            self.kinds[hook.name, hook.branch] = kind

    def __repr__(self) -> str:
        return "collect"


def _forget(_record: Record) -> None:
    pass


def foreseen(plan: Plan) -> Foreseen:
    """Run the first step of the first sample, and count.

    Args:
        plan: The collection.

    Raises:
        StoreError: If a Site names no step of the run.
    """
    gatherer = Gatherer(plan.choice, plan.dtype, give=_forget)
    gatherer.begin(plan.samples[:1])
    kinds: dict[tuple[str, str], _Kind] = {}
    latents: dict[tuple[str, str], _Kind] = {}
    measuring = [(site, _Measuring(site, gatherer, kinds)) for site in plan.sites]
    if plan.latents:
        whole = Gatherer(type(plan.choice)(), None, give=gatherer.give, samples=gatherer.samples)
        site = Site("hook_latents", branch="cond", steps=measuring[0][0].steps)
        measuring.append((site, _Measuring(site, whole, latents)))
    first = alone(part_of(plan.run, range(1), error=StoreError))
    at_once = [(site.with_(steps=None), hook) for site, hook in measuring]
    try:
        begun = beginning(plan.model, first, at_once)
    except EngineError:  # another denoiser may take the first steps: wait for those of this one
        later = [(_from_its_first_step(site), hook) for site, hook in measuring]
        begun = beginning(plan.model, first, later)
    rows = nbytes = 0
    for (name, _), kind in kinds.items():
        steps = sum(map(kind.site.has_step, range(begun.steps)))
        if not steps:
            raise StoreError(
                f"{kind.site!r} names no step of the run, which has {begun.steps} (0 to "
                f"{begun.steps - 1}), at {name}; give others with steps="
            )
        rows += steps * kind.rows
        nbytes += steps * kind.nbytes
    return Foreseen(
        samples=len(plan.samples),
        batches=plan.batches,
        steps=begun.steps,
        evaluations=begun.evaluations * plan.batches,
        rows=rows,
        nbytes=nbytes + INDEX_BYTES * rows + sum(one.nbytes for one in latents.values()),
        widths={name: kind.width for (name, _), kind in kinds.items()},
    )


def _from_its_first_step(site: Site) -> Site:
    """A Site without an end, which a run that is stopped need not reach."""
    steps = site.steps
    start = min(steps) if isinstance(steps, tuple) else steps.start if steps else None
    return site.with_(steps=slice(start, None))


def groups(widths: Mapping[str, int]) -> str:
    """Sites by the width of their rows, for an error."""
    by_width: dict[int, list[str]] = {}
    for name, width in widths.items():
        by_width.setdefault(width, []).append(name)
    return "; ".join(
        f"width {width}: {listing(names, most=4)}" for width, names in by_width.items()
    )
