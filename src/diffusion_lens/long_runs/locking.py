"""One process at a time in a folder that a long run writes to.

The operating system holds the lock for the process and lets go of it when the process ends, however
it ends: a killed run leaves nothing that would keep the next one out.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffusion_lens.errors import ResultError


@contextlib.contextmanager
def only_process(
    file: Path, *, argument: str, error: type[Exception] = ResultError
) -> Iterator[None]:
    """Hold a lock file while the context is open; it is removed afterwards.

    Args:
        file: The lock file, in a folder that exists.
        argument: What the user gave the folder as, for the message.
        error: What to raise.

    Raises:
        error: If another process holds it, or it cannot be made.
    """
    held = _held(file, argument, error)
    try:
        yield
    finally:
        if held is not None:
            # Removed before it is let go: nobody can lock a name that is about to vanish.
            with contextlib.suppress(OSError):
                file.unlink()
            os.close(held)


def _held(file: Path, argument: str, error: type[Exception]) -> int | None:
    """The open, locked file; None where this system or file system has no such locks."""
    fcntl = _locks()
    if fcntl is None:
        return None
    while True:
        try:
            opened = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as problem:
            raise error(
                f"{argument}={str(file.parent)!r} cannot be written to ({problem}); give a folder "
                "of one's own"
            ) from problem
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            holder = os.read(opened, 32).decode(errors="replace") or "unknown"
            os.close(opened)
            raise error(
                f"{argument}={str(file.parent)!r} is in use by another run (process {holder}); "
                "wait for it to end, or give each run a folder of its own"
            ) from problem
        except OSError as problem:
            os.close(opened)
            warnings.warn(
                f"{file.parent} lies on a file system without locks ({problem}): see to it that "
                "no second run writes there",
                stacklevel=4,
            )
            return None
        if _is(opened, file):
            os.ftruncate(opened, 0)
            os.write(opened, str(os.getpid()).encode())
            return opened
        os.close(opened)  # the run before removed it between the two lines


def _is(opened: int, file: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(opened), file.stat())
    return False


def _locks() -> Any:
    """The module of the system's file locks; None on systems without it."""
    with contextlib.suppress(ImportError):
        return importlib.import_module("fcntl")
    return None
