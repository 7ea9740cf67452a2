"""Errors as messages, without a traceback."""

from __future__ import annotations

import contextlib
import traceback
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

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
    """Print errors of this library, or of reading and writing files, as their messages alone.

    Warnings, too, are printed without the line of code that they come from.
    """
    shown = warnings.formatwarning
    warnings.formatwarning = lambda message, *_where, **_more: f"Warning: {message}\n"
    try:
        yield
    except (DiffusionLensError, OSError) as error:
        fail(str(error))
    finally:
        warnings.formatwarning = shown


@contextlib.contextmanager
def pipeline_messages(held: HookedDiffusion) -> Iterator[None]:
    """Print an argument that the pipeline refuses, or fails at, as a message alone."""
    try:
        yield
    except DiffusionLensError:
        raise
    except (TypeError, ValueError) as error:
        fail(f"{type(held.pipe).__name__} refuses these settings: {error}")
    except Exception as error:
        if not _fails_inside(error, held.pipe):
            raise
        fail(f"{type(held.pipe).__name__} fails with these settings: {error!r}")


def _fails_inside(error: Exception, pipe: Any) -> bool:
    """Whether an error is the pipeline's own, not one of this library called from there."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = [str(frame.f_globals.get("__name__")) for frame in frames]
    pipelines = (type(pipe).__module__, "diffusers.pipelines.")  # edits call others of diffusers
    inside = any(module.startswith(pipelines) for module in modules)
    return inside and not modules[-1].startswith("diffusion_lens.")
