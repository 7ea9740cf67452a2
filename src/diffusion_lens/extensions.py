"""What other packages declare by entry points: loaded where it can be, reported where it cannot.

A broken package must not stand in the way of the others, so what is wrong with it is a message.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from diffusion_lens.errors import ExtensionError

_REPORTED: set[str] = set()


@runtime_checkable
class EntryPoint(Protocol):
    """What is used of an entry point.

    Its class is the standard library's, or the one of `importlib_metadata`, whose finder answers
    for both once it is imported (diffusers imports it).
    """

    @property
    def name(self) -> str:
        """Under which it is declared."""
        ...

    @property
    def value(self) -> str:
        """What it refers to: `module:attribute`."""
        ...

    @property
    def group(self) -> str:
        """What it is declared for."""
        ...

    def load(self) -> Any:
        """Import what it refers to."""
        ...


@dataclass(frozen=True)
class Declared:
    """What one entry point gives.

    Attributes:
        name: Of the entry point.
        owner: The package that declares it.
        value: What it gives.
    """

    name: str
    owner: str
    value: Any


def owner_of(entry: EntryPoint) -> str:
    """The package that declares an entry point; where it is of none, what it refers to."""
    dist = getattr(entry, "dist", None)
    return dist.name if dist is not None else entry.value


def load(entry: EntryPoint, *, fits: Callable[[Any], bool], wanted: str) -> Declared:
    """Import what an entry point refers to.

    Args:
        entry: The entry point.
        fits: Whether a value is of the kind that its group asks for.
        wanted: That kind in words.

    Raises:
        ExtensionError: If it cannot be imported, or gives something else.
    """
    owner = owner_of(entry)
    where = f"the entry point {entry.name!r} of {owner} in {entry.group}"
    try:
        value = entry.load()
    # A package may fail at import in any way, `sys.exit()` among them.
    except (Exception, SystemExit) as error:
        raise ExtensionError(
            f"{where} cannot be imported ({type(error).__name__}: {error}); "
            f"upgrade or uninstall {owner}"
        ) from error
    if not fits(value):
        raise ExtensionError(
            f"{where} is a {type(value).__name__}, not {wanted}; see docs/extending.md"
        )
    return Declared(entry.name, owner, value)


def load_all(
    entries: Iterable[EntryPoint], *, fits: Callable[[Any], bool], wanted: str
) -> tuple[list[Declared], list[str]]:
    """Import what can be imported, and warn of the rest, once each.

    Returns:
        What was loaded, and a message for each entry point that is broken.
    """
    loaded, broken = [], []
    for entry in entries:
        try:
            loaded.append(load(entry, fits=fits, wanted=wanted))
        except ExtensionError as error:
            broken.append(str(error))
    for message in broken:
        if message not in _REPORTED:
            _REPORTED.add(message)
            warnings.warn(f"left out: {message}", stacklevel=3)
    return loaded, broken
