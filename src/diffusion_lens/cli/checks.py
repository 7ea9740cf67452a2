"""Options that are checked before anything is loaded: devices, pictures, folders for results."""

from __future__ import annotations

import tempfile
from pathlib import Path

import typer


def device(name: str | None) -> str | None:
    """A device that torch knows and this machine has.

    Raises:
        typer.BadParameter: If there is none of that name.
    """
    if name is None:
        return None
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise typer.BadParameter(f"{name!r} cannot be used here: {reason}") from error
    return name


def picture(path: Path | None) -> Path | None:
    """A file that holds a picture.

    Raises:
        typer.BadParameter: If it holds something else.
    """
    if path is None:
        return None
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.verify()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise typer.BadParameter(f"{path} is no picture that can be read: {error}") from error
    return path


def writable(folder: Path) -> Path:
    """A folder that results can be written to; what was made to find out is removed again.

    Raises:
        typer.BadParameter: If it cannot be made or written to.
    """
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise typer.BadParameter(f"results cannot be written to {folder}: {error}") from error
    finally:
        for one in missing:
            if one.is_dir():
                one.rmdir()
    return folder
