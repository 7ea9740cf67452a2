"""Files that are there whole or not at all: written beside, then renamed into place."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A path to write to; what lies there when the context ends takes the place of `path` at once.

    Whoever reads `path` finds the file before or the file after, however the writing ended. Several
    processes may write the same file: the last one to end is the one that is read.

    Args:
        path: The file; its folder exists.

    Yields:
        A path in the same folder with the same ending. It is removed if the context fails; a
        process that is killed leaves it behind.
    """
    path = Path(path)
    # The process in the name: two that shared one would rename each other's half-written file.
    beside = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield beside
        # A rename may reach the disk before the bytes do.
        with beside.open("rb+") as written:
            os.fsync(written.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_whole(path: str | Path, text: str) -> None:
    """Write a text file (UTF-8) so that it is there whole or not at all.

    Args:
        path: The file; its folder exists.
        text: What it shall hold.
    """
    with whole_file(path) as beside:
        beside.write_text(text, encoding="utf-8")
