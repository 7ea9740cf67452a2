"""Rows of a model that runs, with nothing on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from diffusion_lens import HookedDiffusion, Run
from diffusion_lens.activations.foreseeing import foreseen
from diffusion_lens.activations.gathering import Record
from diffusion_lens.activations.mixing import Rows, RowSource
from diffusion_lens.activations.plan import Plan
from diffusion_lens.border import Count, Index, PipelineSetting, public
from diffusion_lens.errors import StoreError
from diffusion_lens.hook_points import Sites
from diffusion_lens.showing.one_line import counted, one_line


@dataclass(frozen=True, repr=False)
class OnlineActivations(RowSource):
    """Rows that are made when they are asked for; every pass over them runs the model anew.

    It has the iterators of an `ActivationStore`: `parts`, `batches`, `loader`.

    Attributes:
        plan: What is run and collected.
        found: The width of each site's rows, as the first step has them.
    """

    plan: Plan
    found: Mapping[str, int]

    def widths(self) -> Mapping[str, int]:
        """The width of each site's rows."""
        return self.found

    def parts(self) -> Iterator[Rows]:
        """The rows in their order, a hook point at a step of a batch at a time."""
        for records in self._runs(range(self.plan.batches)):
            for one in records:
                yield Rows(one.values, _index(one))

    @public
    def loader(
        self, batch_size: Count, *, workers: Index = 0, **options: Any
    ) -> DataLoader[Tensor]:
        """A torch DataLoader of batches; see `ActivationStore.loader`.

        Raises:
            StoreError: With workers, which cannot share the model.
        """
        if workers:
            raise StoreError(f"workers={workers}: a model that runs stays in one process; give 0")
        return super().loader(batch_size, **options)

    def _runs(self, numbers: Sequence[int]) -> Iterator[list[Record]]:
        records: list[Record] = []
        for number in numbers:
            for _ in self.plan.gather(range(number, number + 1), records.append):
                yield records
                records.clear()

    def _shuffled(self, generator: torch.Generator, share: int, of: int) -> Iterator[Tensor]:
        order = torch.randperm(self.plan.batches, generator=generator).tolist()
        for records in self._runs(order[share::of]):
            yield torch.cat([one.values for one in records])

    def __repr__(self) -> str:
        """What it will run, in one line."""
        return one_line(
            self,
            counted(len(self.plan.samples), "sample"),
            counted(len(self.found), "site"),
            look=(".batches()", ".loader()"),
        )


@public(sites=Sites, settings=PipelineSetting)
def online(
    model: HookedDiffusion,
    prompts: str | Sequence[str] | Run,
    *,
    sites: Any,
    steps: Any = None,
    branch: str = "cond",
    tokens: str | int = "all",
    dtype: torch.dtype | None = None,
    batch_size: Count = 1,
    seeds: Any = None,
    **settings: Any,
) -> OnlineActivations:
    """Activations of runs that happen when rows are asked for: run, mix, hand out, forget.

    Args:
        model: The model.
        prompts: As for `collect`.
        sites: Likewise.
        steps: Likewise.
        branch: Likewise.
        tokens: Likewise.
        dtype: Likewise.
        batch_size: How many samples run at once.
        seeds: Likewise.
        **settings: Arguments of the pipeline's own call.

    Returns:
        Rows with the iterators of a store.
    """
    plan = Plan.of(
        model,
        prompts,
        sites=sites,
        steps=steps,
        branch=branch,
        tokens=tokens,
        seeds=seeds,
        settings=settings,
        dtype=dtype,
        batch_size=batch_size,
        images=False,
        latents=False,
    )
    return OnlineActivations(plan, foreseen(plan).widths)


def _index(record: Record) -> dict[str, np.ndarray]:
    count = len(record.values)
    said = {**record.columns(), "block": -1 if record.block is None else record.block}
    return {
        name: np.array(value) if np.ndim(value) else np.repeat(np.array(value), count)
        for name, value in said.items()
    }
