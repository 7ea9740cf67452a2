"""The shards of a store as they lie on the disk: whether each is whole, and reading its files."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from diffusion_lens.activations import files
from diffusion_lens.errors import StoreError


@dataclass(frozen=True)
class Shard:
    """One shard of a store.

    Attributes:
        number: Which.
        index: The path of its index.
        rows: How many rows it has.
        files: Size and checksum of each of its files, by name.
    """

    number: int
    index: Path
    rows: int
    files: Mapping[str, Mapping[str, Any]]


def shard_of(folder: Path, number: int, digest: str) -> Shard:
    """What a shard's index says of its files, if they are there and whole.

    Raises:
        StoreError: If they are not, or are another collection's.
    """
    path = files.index_path(folder, number)
    try:
        metadata = files.parquet().read_metadata(path)
        said = json.loads((metadata.metadata or {})[files.MARK])
        of, named = said["of"], dict(said["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise unreadable(path, error) from error
    if of != digest or said.get("shard") != number:
        raise StoreError(
            f"{path} is of another store, or of another place in this one: {folder} is mixed from "
            "several; give each collection a folder of its own"
        )
    for name, one in named.items():
        file = folder / name
        size = file.stat().st_size if Path(name).name == name and file.is_file() else None
        if size != one.get("bytes"):
            what = "is missing" if size is None else f"has {size:,} bytes"
            raise StoreError(
                f"{file} {what}, its index says {one.get('bytes'):,}; remove {path.name} and "
                "collect again, which makes this shard anew"
            )
    return Shard(number, path, metadata.num_rows, named)


def unreadable(path: Path, error: BaseException) -> StoreError:
    """What to say of a file of a shard that cannot be read."""
    return StoreError(
        f"{path} cannot be read ({error}); it was cut short or changed: remove the shard's index "
        "(.parquet) and collect again, which makes this shard anew"
    )


@contextlib.contextmanager
def reading(path: Path) -> Iterator[Any]:
    """A file of tensors, open."""
    try:
        with safe_open(path, "pt") as opened:
            yield opened
    except (OSError, SafetensorError, IndexError) as error:
        raise unreadable(path, error) from error
