"""Tables as csv files, which every program reads and none runs."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""What spreadsheets take for the beginning of a formula."""


def write_table(rows: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Write rows as csv; the first row names the columns.

    Spreadsheets run a cell that begins like a formula, and words of prompts may: such a text is
    written behind an apostrophe. Numbers are written as they are.

    Args:
        rows: A mapping for each row.
        path: The file; its folder is made if need be.

    Returns:
        The path.
    """
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        columns = list(rows[0]) if rows else []
        writer.writerow(map(as_text, columns))
        writer.writerows([as_text(row[column]) for column in columns] for row in rows)
    return file


def as_text(value: Any) -> Any:
    """A cell that no program runs."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
