"""A store of activations on disk: read lazily, filtered, and handed out in batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffusion_lens.activations import exporting, files
from diffusion_lens.activations.conditions import SHOWN, as_array, condition_of, expression_of
from diffusion_lens.activations.mixing import Rows, RowSource
from diffusion_lens.activations.page import Page
from diffusion_lens.activations.shards import Shard, reading, shard_of, unreadable
from diffusion_lens.border import Count, Index, public
from diffusion_lens.errors import StoreError, listing, refuse_unknown
from diffusion_lens.showing.one_line import counted, one_line


@dataclass(frozen=True, repr=False)
class ActivationStore(RowSource):
    """Activations that `collect` wrote. Nothing is ever unpickled.

    Attributes:
        folder: Where it lies; it must stay there.
        page: What it is of.
        shards: The shards that are there.
        conditions: What `where` has left of it.
    """

    folder: Path
    page: Page
    shards: tuple[Shard, ...]
    conditions: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    @public
    def open(cls, folder: str | Path, *, partial: bool = False) -> ActivationStore:
        """Open a folder that `collect` filled; only what its indices say is read.

        Args:
            folder: The folder.
            partial: Whether shards may be missing, because the collection runs or was ended.

        Raises:
            StoreError: If it is no store, or not whole; if a file is missing, cut short, or of
                another collection. `check` reads every byte.
        """
        path = Path(folder)
        page = Page.read(path)
        numbers = sorted(
            int(found[1])
            for one in path.iterdir()
            if (found := files.INDEX.fullmatch(one.name)) is not None
        )
        beyond = [number for number in numbers if number >= page.shards]
        if beyond:
            raise StoreError(
                f"{path} is mixed from several stores: it has shard {beyond[0]}, of {page.shards} "
                "(0 and up)"
            )
        if len(numbers) < page.shards and not partial:
            raise StoreError(
                f"{path} is not whole: {len(numbers)} of {counted(page.shards, 'shard')} are "
                "there. Call `collect` with the same arguments and it goes on, or open what there "
                "is with partial=True"
            )
        return cls(path, page, tuple(shard_of(path, number, page.digest) for number in numbers))

    # -- what there is ------------------------------------------------------------------------

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts, by their number."""
        return self.page.prompts

    @property
    def sites(self) -> list[str]:
        """The names of the sites in it."""
        return list(dict.fromkeys(site for site, _ in self._counts))

    @property
    def nbytes(self) -> int:
        """Bytes of its files, without the indices, whatever `where` leaves of the rows."""
        return sum(said["bytes"] for shard in self.shards for said in shard.files.values())

    def widths(self) -> dict[str, int | tuple[int, ...]]:
        """The width of each site's rows; several where it is not the same at every step."""
        found: dict[str, list[int]] = {}
        for site, width in self._counts:
            found.setdefault(site, []).append(width)
        return {
            site: several[0] if len(several) == 1 else tuple(several)
            for site, several in found.items()
        }

    def __len__(self) -> int:
        """How many rows."""
        return sum(self._counts.values())

    @cached_property
    def _counts(self) -> dict[tuple[str, int], int]:
        """Rows of each site and width."""
        counts: dict[tuple[str, int], int] = {}
        for shard in self.shards:
            table = self._table(shard, ["site", "width"])
            for one in table.group_by(["site", "width"]).aggregate([([], "count_all")]).to_pylist():
                key = (one["site"], one["width"])
                counts[key] = counts.get(key, 0) + one["count_all"]
        return dict(sorted(counts.items(), key=lambda one: _order(one[0], self.page.sites)))

    # -- choosing -----------------------------------------------------------------------------

    @public
    def where(self, **conditions: Any) -> ActivationStore:
        """The rows for which every condition holds; nothing is read yet.

        Args:
            **conditions: By column (`site`, `prompt`, `seed`, `step`, `timestep`, `branch`,
                `block`, `position`, `grid`): one value, several, or a slice of numbers. `site`
                takes patterns, `block=None` what lies outside the blocks.

        Raises:
            StoreError: If there is no such column.
            UnknownHookPointError: If a site matches none.
        """
        chosen = dict(self.conditions)
        for column, value in conditions.items():
            refuse_unknown("column", column, SHOWN, error=StoreError)
            chosen.setdefault(column, [])
            chosen[column] = [*chosen[column], condition_of(column, value, list(self.page.sites))]
        return ActivationStore(self.folder, self.page, self.shards, chosen)

    # -- reading ------------------------------------------------------------------------------

    def parts(self) -> Iterator[Rows]:
        """The rows in their order, a site of a file at a time."""
        for shard in self.shards:
            yield from self._parts(shard)

    def rows(self) -> Rows:
        """All rows at once.

        Raises:
            StoreError: If they are not of one width, with the groups that are.
        """
        self.refuse_unlike()
        every = list(self.parts())
        index = {name: np.concatenate([one.index[name] for one in every]) for name in SHOWN}
        return Rows(torch.cat([one.values for one in every]), index)

    @public
    def image(self, prompt: Index, *, seed: int | None = None) -> Image.Image:
        """The image of a prompt, if the collection kept images; of a video its first frame.

        Args:
            prompt: The number of the prompt.
            seed: Its seed; None for the first there is.
        """
        number = self._sample(prompt, seed)
        names = [
            name for shard in self.shards for name in shard.files if f"-image_{number:08d}" in name
        ]
        if not names:
            raise StoreError(f"{self.folder} holds no images; collect with images=True")
        with Image.open(self.folder / sorted(names)[0]) as opened:
            return opened.convert("RGB")

    @public
    def latents(self, prompt: Index, *, seed: int | None = None) -> Tensor:
        """The final latents of a prompt, if the collection kept them.

        Args:
            prompt: The number of the prompt.
            seed: Its seed; None for the first there is.
        """
        number = str(self._sample(prompt, seed))
        for shard in self.shards:
            for name in (one for one in shard.files if one.endswith("-latents.safetensors")):
                with reading(self.folder / name) as file:
                    if number in file.keys():  # noqa: SIM118 (no mapping)
                        return file.get_tensor(number)
        raise StoreError(f"{self.folder} holds no latents; collect with latents=True")

    def _sample(self, prompt: int, seed: int | None) -> int:
        """The number of the sample of a prompt and seed."""
        samples = [tuple(one) for one in self.page.about["samples"]]
        found = [
            number
            for number, (of, its) in enumerate(samples)
            if of == prompt and seed in (None, its)
        ]
        if not found:
            raise StoreError(
                f"prompt {prompt} with seed {seed} is not in this store, which has "
                f"{counted(len(self.prompts), 'prompt')} and the seeds "
                f"{listing(sorted({its for _, its in samples}))}"
            )
        return found[0]

    def check(self) -> None:
        """Read every file and compare its checksum.

        Raises:
            StoreError: Naming the first that was changed.
        """
        for shard in self.shards:
            for name, said in shard.files.items():
                if files.sha256_of(self.folder / name) != said["sha256"]:
                    raise StoreError(
                        f"{self.folder / name} was changed after it was written; remove "
                        f"{shard.index.name} and collect again, which makes this shard anew"
                    )

    # -- handing on ---------------------------------------------------------------------------

    def to_datasets(self) -> Any:
        """The rows as a data set of the package `datasets`, with the columns of the index."""
        return exporting.to_datasets(self)

    @public
    def to_webdataset(self, folder: str | Path, *, rows_per_file: Count = 10_000) -> list[Path]:
        """Write the rows as tar files for the package `webdataset`.

        Args:
            folder: Where to.
            rows_per_file: How many rows go into each.
        """
        return exporting.to_webdataset(self, Path(folder), rows_per_file=rows_per_file)

    # -- inside -------------------------------------------------------------------------------

    def _table(self, shard: Shard, columns: list[str]) -> Any:
        """Columns of a shard's index, for the rows that are chosen."""
        try:
            return files.parquet().read_table(
                shard.index, columns=columns, filters=expression_of(self.conditions)
            )
        except (OSError, ValueError) as error:
            raise unreadable(shard.index, error) from error

    def _parts(self, shard: Shard, *, with_index: bool = True) -> Iterator[Rows]:
        shown = list(SHOWN) if with_index else ["site"]
        table = self._table(shard, list(dict.fromkeys(["file", "width", "row", *shown])))
        columns = {name: as_array(table, name) for name in table.column_names}
        keys = list(zip(*(columns[name] for name in ("file", "site", "width")), strict=True))
        starts = [at for at in range(len(keys)) if at == 0 or keys[at] != keys[at - 1]]
        for start, stop in zip(starts, [*starts[1:], len(keys)], strict=True):
            file, site, width = keys[start]
            with reading(self.folder / str(file)) as opened:
                values = opened.get_tensor(files.tensor_name(str(site), int(width)))
                kept = values[torch.from_numpy(columns["row"][start:stop].copy())]
            yield Rows(kept, {name: columns[name][start:stop] for name in shown})

    def _shuffled(self, generator: torch.Generator, share: int, of: int) -> Iterator[Tensor]:
        order = torch.randperm(len(self.shards), generator=generator).tolist()
        for at in order[share::of]:
            for part in self._parts(self.shards[at], with_index=False):
                yield part.values

    def __repr__(self) -> str:
        """What it holds, in one line."""
        missing = self.page.shards - len(self.shards)
        return one_line(
            self,
            f"{len(self):,} rows",
            f"{counted(len(self.sites), 'site')}",
            f"{counted(len(self.prompts), 'prompt')}",
            f"{missing} shards missing" if missing else "",
            look=(".where()", ".rows()", ".loader()"),
        )


def _order(key: tuple[str, int], sites: Mapping[str, int]) -> tuple[int, int]:
    names = list(sites)
    return (names.index(key[0]) if key[0] in sites else len(names), key[1])
