"""Batches of rows in mixed order, from wherever rows come: a store, or a model that runs."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from diffusion_lens.activations.foreseeing import groups
from diffusion_lens.border import Count, Index, public
from diffusion_lens.border import Seed as SeedNumber
from diffusion_lens.errors import StoreError
from diffusion_lens.showing.one_line import one_line

BUFFER = 2**14
"""Rows that are mixed at once, unless a batch is larger."""


@dataclass(frozen=True, repr=False)
class Rows:
    """Rows of activations and what is known of each.

    Attributes:
        values: The rows.
        index: For each row its site, prompt, seed, step, timestep, branch, block (-1 outside the
            blocks), position along the tokens (-1 where there are none) and grid.
    """

    values: Float[Tensor, "rows d"]
    index: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        """How many rows."""
        return len(self.values)

    def __repr__(self) -> str:
        """Their shape in one line."""
        return one_line(self, f"{tuple(self.values.shape)}", look=(".values", ".index"))


class RowSource(abc.ABC):
    """Rows that come part by part, and batches of them in mixed order."""

    @abc.abstractmethod
    def parts(self) -> Iterator[Rows]:
        """The rows, part by part, in their order."""

    @abc.abstractmethod
    def widths(self) -> Mapping[str, int | tuple[int, ...]]:
        """The width of each site's rows; several where it is not the same at every step."""

    @abc.abstractmethod
    def _shuffled(self, generator: torch.Generator, share: int, of: int) -> Iterator[Tensor]:
        """The rows of one of some workers, part by part, in any order."""

    @public
    def batches(
        self,
        batch_size: Count,
        *,
        seed: SeedNumber = 0,
        buffer: Count | None = None,
        drop_last: bool = False,
    ) -> Iterator[Float[Tensor, "rows d"]]:
        """Every row once, in batches of mixed order, which the seed decides.

        Rows are mixed within a buffer, which is filled from parts in a random order: rows of one
        image come nearer to each other than by chance if the buffer holds few images.

        Args:
            batch_size: How many rows.
            seed: Of the order.
            buffer: How many rows are mixed at once; at least 16,384 and two batches by default.
            drop_last: Whether to leave out a last batch that is smaller.

        Raises:
            StoreError: If rows are not of one width, with the groups that are.
        """
        self.refuse_unlike()
        generator = torch.Generator().manual_seed(seed)
        return self._mixed(batch_size, generator, buffer, drop_last)

    def _mixed(
        self,
        batch_size: int,
        generator: torch.Generator,
        buffer: int | None,
        drop_last: bool,
        share: int = 0,
        of: int = 1,
    ) -> Iterator[Tensor]:
        size = max(BUFFER, 2 * batch_size) if buffer is None else max(buffer, batch_size)
        parts = self._shuffled(generator, share, of)
        return mixed(parts, batch_size, size, generator, drop_last=drop_last)

    @public
    def loader(
        self,
        batch_size: Count,
        *,
        seed: SeedNumber = 0,
        buffer: Count | None = None,
        drop_last: bool = False,
        workers: Index = 0,
    ) -> DataLoader[Tensor]:
        """A torch DataLoader of batches [rows d]; every pass over it has an order of its own.

        Args:
            batch_size: How many rows.
            seed: Of the orders, one after the other.
            buffer: As for `batches`, of each worker.
            drop_last: As for `batches`; each worker has a last batch.
            workers: Processes that read.

        Raises:
            StoreError: If rows are not of one width.
        """
        self.refuse_unlike()
        dataset = _Batches(self, batch_size, seed, buffer, drop_last)
        generator = torch.Generator().manual_seed(seed)
        return DataLoader(dataset, batch_size=None, num_workers=workers, generator=generator)

    def refuse_unlike(self) -> None:
        """Refuse rows of several widths, or none.

        Raises:
            StoreError: With the groups that are of one width.
        """
        found = self.widths()
        each = {name: (one,) if isinstance(one, int) else one for name, one in found.items()}
        if not each:
            raise StoreError(f"{self!r} has no rows: its conditions leave nothing")
        if len({width for several in each.values() for width in several}) == 1:
            return
        within = [name for name, several in each.items() if len(several) > 1]
        told = groups({name: several[0] for name, several in each.items() if len(several) == 1})
        differing = [f"{name}: widths {', '.join(map(str, each[name]))}" for name in within]
        raise StoreError(
            f"rows of other widths do not lie in one batch: {'; '.join([told, *differing])}. "
            "Take one group by its sites: `store.where(site=[…])`"
        )


class _Batches(IterableDataset[Tensor]):
    """What a DataLoader reads, in one process or several."""

    def __init__(
        self, source: RowSource, batch_size: int, seed: int, buffer: int | None, drop_last: bool
    ) -> None:
        self.source, self.batch_size = source, batch_size
        self.buffer, self.drop_last = buffer, drop_last
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[Tensor]:
        worker: Any = get_worker_info()
        generator, share, of = self.generator, 0, 1
        if worker is not None:
            # One seed for all, which the loader draws anew in each pass: shares must not overlap.
            generator = torch.Generator().manual_seed(worker.seed - worker.id)
            share, of = worker.id, worker.num_workers
        return self.source._mixed(
            self.batch_size, generator, self.buffer, self.drop_last, share, of
        )


def mixed(
    parts: Iterator[Tensor],
    batch_size: int,
    buffer: int,
    generator: torch.Generator,
    *,
    drop_last: bool = False,
) -> Iterator[Tensor]:
    """Batches of mixed order: a buffer is filled, mixed, and half of it handed out.

    Args:
        parts: Rows, as they come.
        batch_size: Rows of a batch.
        buffer: Rows that are mixed at once.
        generator: Draws the order.
        drop_last: Whether a last smaller batch is left out.

    Yields:
        Batches; every row once.
    """
    held: list[Tensor] = []
    count = 0
    for part in parts:
        held.append(part)
        count += len(part)
        if count < buffer:
            continue
        pool = _shuffled(held, generator)
        whole = (len(pool) - buffer // 2) // batch_size * batch_size
        yield from pool[:whole].clone().split(batch_size)
        held = [pool[whole:].clone()]
        count = len(held[0])
    if count:
        last = _shuffled(held, generator).split(batch_size)
        yield from (one for one in last if len(one) == batch_size or not drop_last)


def _shuffled(held: list[Tensor], generator: torch.Generator) -> Tensor:
    pool = torch.cat(held)
    return pool[torch.randperm(len(pool), generator=generator)]
