"""Options that are checked before anything is loaded: devices, numbers, pictures, folders."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import typer

from diffusion_lens.border.hints import test_of
from diffusion_lens.border.wording import told
from diffusion_lens.errors import closest


def device(name: str | None) -> str | None:
    """A device that torch knows and this machine has, and that holds values.

    Raises:
        typer.BadParameter: If there is none of that name.
    """
    if name is None:
        return None
    import torch

    try:
        torch.empty(1, device=name).item()  # tensors of the device meta can be made, not read
        known = torch.device(name).type != "cpu" or torch.device(name).index in (None, 0)
    except (RuntimeError, AssertionError, NotImplementedError):
        known = False
    if not known:
        here = ["cpu", *(f"cuda:{at}" for at in range(torch.cuda.device_count()))]
        if torch.backends.mps.is_available():
            here.append("mps")
        raise typer.BadParameter(f"{name!r} cannot be used here; this machine has {here}")
    return name


def within(hint: Any) -> Callable[[Any], Any]:
    """A check of a number against an annotation with a range; what was not given passes."""
    test = test_of(hint)

    def checked(value: Any) -> Any:
        if value is not None and not test(value):
            raise typer.BadParameter(f"takes {told(hint)}, got {value!r}")
        return value

    return checked


def one_of(*choices: str) -> Callable[[str | None], str | None]:
    """A check of a word against a few; what was not given passes."""

    def checked(value: str | None) -> str | None:
        if value is not None and value not in choices:
            near = closest(value, choices, count=1)
            hint = f" Closest: {near[0]}." if near else ""
            raise typer.BadParameter(f"{value!r} is none of {', '.join(choices)}.{hint}")
        return value

    return checked


def refuse_unread(given: Mapping[str, Any], *, unless: str, read: bool) -> None:
    """Refuse options that were given where nothing reads them.

    Args:
        given: Options and their values, None where they were not given.
        unless: What would have to be given for them to be read.
        read: Whether it was.

    Raises:
        typer.BadParameter: Naming the first.
    """
    for option, value in given.items():
        if value is not None and not read:
            raise typer.BadParameter(f"{option} is read with {unless} only; leave it out")


def picture(path: Path | None) -> Path | None:
    """A file that holds a picture.

    Raises:
        typer.BadParameter: If it holds something else, or is cut short.
    """
    if path is None:
        return None
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()  # `verify` passes files that are cut short
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise typer.BadParameter(f"{path} is no picture that can be read: {error}") from error
    return path


def folder(given: str | Path) -> Path:
    """A folder's name, which an empty text is not: it would be the current folder.

    Raises:
        typer.BadParameter: If it is empty.
    """
    if not str(given).strip():
        raise typer.BadParameter("'' names no folder; leave it out, or give . for the current one")
    return Path(given)


def writable(folder: Path | None) -> Path | None:
    """A folder that results can be written to; what was made to find out is removed again.

    Raises:
        typer.BadParameter: If it cannot be made or written to.
    """
    if folder is None:
        return None
    missing: list[Path] = []
    try:
        missing += [one for one in (folder, *folder.parents) if not one.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"results cannot be written to {folder}: {error}") from error
    finally:
        for one in missing:
            if one.is_dir():
                one.rmdir()
    return folder
