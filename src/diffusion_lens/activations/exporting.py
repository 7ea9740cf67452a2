"""Rows of a store for other packages that read data sets."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffusion_lens.activations import files

if TYPE_CHECKING:
    from diffusion_lens.activations.mixing import RowSource


def to_datasets(source: RowSource) -> Any:
    """Rows as a data set of the package `datasets`: `values` and the columns of the index.

    Args:
        source: The rows, of one width.

    Raises:
        StoreError: If the package is not installed, or rows are not of one width.
    """
    datasets = files.needed("datasets")
    source.refuse_unlike()
    return datasets.Dataset.from_generator(_rows, gen_kwargs={"source": source})


def to_webdataset(source: RowSource, folder: Path, *, rows_per_file: int) -> list[Path]:
    """Write rows as tar files: `values.npy` and `index.json` of each.

    Args:
        source: The rows.
        folder: Where to; made if missing.
        rows_per_file: How many rows go into each.

    Returns:
        The files.

    Raises:
        StoreError: If the package is not installed, or the folder cannot be written to.
    """
    webdataset = files.needed("webdataset")
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        pattern = str(folder / "rows-%06d.tar")
        with webdataset.ShardWriter(pattern, maxcount=rows_per_file, verbose=0) as writer:
            for number, row in enumerate(_rows(source)):
                values = io.BytesIO()
                np.save(values, row.pop("values"), allow_pickle=False)
                index = json.dumps(row).encode()
                key = f"{number:012d}"
                writer.write({"__key__": key, "values.npy": values.getvalue(), "index.json": index})
    return sorted(folder.glob("rows-*.tar"))


def _rows(source: RowSource) -> Iterator[dict[str, Any]]:
    """Row after row, in plain types; numpy has no bfloat16, which becomes float32."""
    for part in source.parts():
        wide = part.values if part.values.element_size() > 2 else part.values.float()
        for at, values in enumerate(wide.numpy()):
            yield {"values": values, **{name: one[at].item() for name, one in part.index.items()}}
