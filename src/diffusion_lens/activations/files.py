"""The files of a store's shards: rows, and the index that says what each of them is.

A shard is written by one process and is there when its index is, which is written last. Its files
hang on the collection alone, not on which process wrote them, nor on when.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from diffusion_lens.activations.gathering import Record
from diffusion_lens.errors import StoreError
from diffusion_lens.whole_files import whole_file

INDEX = re.compile(r"shard-(\d{6,})\.parquet")
LEFT = re.compile(r"\.shard-(\d{6,})(-\w+)?\.\d+\.partial\.\w+|\.store\.\d+\.partial\.json")
"""What a process that was killed while it wrote leaves behind."""

MARK = b"diffusion_lens"
"""Under which key an index says what it belongs to."""

TEXTS = ("site", "branch", "grid", "file")
"""Columns of few different texts."""

COLUMNS = {
    "site": "string",
    "width": "int32",
    "file": "string",
    "row": "int64",
    "prompt": "int64",
    "seed": "int64",
    "step": "int32",
    "timestep": "float64",
    "branch": "string",
    "block": "int32",
    "position": "int32",
    "grid": "string",
}
"""The columns of an index and their types."""


def needed(package: str, *, extra: str | None = None) -> Any:
    """A package that is only needed here.

    Args:
        package: Its name, or that of one of its modules.
        extra: The extra that brings it; None for a package that has to be installed by itself.

    Raises:
        StoreError: If it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        name = package.partition(".")[0]
        what = f"'diffusion-lens[{extra}]'" if extra else name
        raise StoreError(
            f"this needs the package {name}, which cannot be imported ({error}): pip install {what}"
        ) from error


def parquet() -> Any:
    """The module that reads and writes indices."""
    return needed("pyarrow.parquet", extra="activations")


def tensor_name(site: str, width: int) -> str:
    """Under which name the rows of a site lie in a file."""
    return f"{site} {width}"


def index_path(folder: Path, number: int) -> Path:
    """The index of a shard."""
    return folder / f"shard-{number:06d}.parquet"


class ShardWriter:
    """Writes one shard: files of rows as they come, then the index that makes them count.

    Args:
        folder: Of the store.
        number: Of the shard.
        digest: Of the collection.
        file_bytes: About how many bytes of rows go into a file.
    """

    def __init__(self, folder: Path, number: int, digest: str, file_bytes: int) -> None:
        """Nothing is written yet."""
        self.folder, self.number, self.digest = folder, number, digest
        self.file_bytes = file_bytes
        self.files: dict[str, dict[str, Any]] = {}
        self.rows: dict[tuple[str, int], list[Tensor]] = {}
        self.columns: dict[tuple[str, int], list[dict[str, Any]]] = {}
        self.pending = 0
        self.latents: dict[str, Tensor] = {}
        self.tables: list[Any] = []
        self.written = 0

    def add(self, record: Record) -> None:
        """Take rows; write them where enough of them wait."""
        key = (record.site, record.values.shape[1])
        self.rows.setdefault(key, []).append(record.values)
        self.columns.setdefault(key, []).append(record.columns())
        self.pending += record.values.nbytes
        if self.pending >= self.file_bytes:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait."""
        if not self.rows:
            return
        name = f"shard-{self.number:06d}-{len(self.tables):03d}.safetensors"
        tensors = {tensor_name(*key): torch.cat(rows) for key, rows in self.rows.items()}
        self.write_tensors(name, tensors)
        tables = [
            _table(key, name, columns, len(tensors[tensor_name(*key)]))
            for key, columns in self.columns.items()
        ]
        self.tables.append(needed("pyarrow").concat_tables(tables))
        self.rows, self.columns, self.pending = {}, {}, 0

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write a file of tensors and remember what it is."""
        with writing(self.folder), whole_file(self.folder / name) as path:
            save_file(dict(tensors), path)
            self.note(name, path)

    def note(self, name: str, path: Path) -> None:
        """Remember size and checksum of a file."""
        self.files[name] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        self.written += path.stat().st_size

    def finish(self) -> None:
        """Write what waits, and the index: from then on the shard is there."""
        self.flush()
        if self.latents:
            self.write_tensors(f"shard-{self.number:06d}-latents.safetensors", self.latents)
        arrow = needed("pyarrow")
        table = arrow.concat_tables(self.tables) if self.tables else _schema().empty_table()
        said = {"of": self.digest, "shard": self.number, "files": self.files}
        table = table.replace_schema_metadata({MARK: json.dumps(said).encode()})
        path = index_path(self.folder, self.number)
        with writing(self.folder), whole_file(path) as beside:
            parquet().write_table(table, beside, compression="zstd")
            self.written += beside.stat().st_size


def _schema() -> Any:
    arrow = needed("pyarrow")
    kinds = {name: getattr(arrow, kind)() for name, kind in COLUMNS.items()}
    return arrow.schema(
        [
            (name, arrow.dictionary(arrow.int32(), kind) if name in TEXTS else kind)
            for name, kind in kinds.items()
        ]
    )


def _table(key: tuple[str, int], file: str, records: list[dict[str, Any]], total: int) -> Any:
    """The index of one site's rows in one file."""
    arrow = needed("pyarrow")
    counts = [len(one["position"]) for one in records]
    given: dict[str, list[Any]] = {
        "site": [key[0]],
        "width": [key[1]],
        "file": [file],
        **{name: [one[name] for one in records] for name in records[0] if name != "site"},
    }

    def each(values: list[Any]) -> np.ndarray:
        """One entry for each row, from one for all, one for each record, or those themselves."""
        if np.ndim(values[0]):
            return np.concatenate(values)
        return np.repeat(np.array(values), total if len(values) == 1 else counts)

    arrays = []
    for field in _schema():
        values = given.get(field.name, [])
        if field.name in TEXTS:
            texts = list(dict.fromkeys(values))
            codes = each([texts.index(one) for one in values])
            absent = each([not one for one in values])
            indices = arrow.array(codes, type=arrow.int32(), mask=absent)
            arrays.append(arrow.DictionaryArray.from_arrays(indices, arrow.array(texts)))
        elif field.name == "row":
            arrays.append(arrow.array(np.arange(total), type=field.type))
        elif field.name == "block":
            blocks = each([-1 if one is None else one for one in values])
            arrays.append(arrow.array(blocks, type=field.type, mask=blocks < 0))
        else:
            arrays.append(arrow.array(each(values), type=field.type))
    return arrow.table(arrays, schema=_schema())


def sha256_of(path: Path) -> str:
    """The checksum of a file."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say what a failed write means, while the context is open.

    Raises:
        StoreError: If the disk is full, or the folder cannot be written to.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"{folder} cannot be written to ({error}); the shards that are whole are kept: make "
            "room and call `collect` with the same arguments again, and it goes on"
        ) from error
