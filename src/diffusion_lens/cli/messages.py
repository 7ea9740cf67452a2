"""Errors as messages, without a traceback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

import typer

from diffusion_lens.errors import DiffusionLensError

if TYPE_CHECKING:
    from diffusion_lens.hooked_diffusion import HookedDiffusion


def fail(message: str, *, code: int = 2) -> NoReturn:
    """Print a message on the error stream and end."""
    typer.echo(message, err=True)
    raise typer.Exit(code)


@contextlib.contextmanager
def messages() -> Iterator[None]:
    """Print an error of this library, or of reading and writing files, as its message alone."""
    try:
        yield
    except (DiffusionLensError, OSError) as error:
        fail(str(error))


@contextlib.contextmanager
def pipeline_messages(held: HookedDiffusion) -> Iterator[None]:
    """Print an argument that the pipeline refuses as a message alone."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if isinstance(error, DiffusionLensError):
            raise
        fail(f"{type(held.pipe).__name__} refuses these settings: {error}")
