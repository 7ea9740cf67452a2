"""The toy models that ship with the package."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lens.border import public
from diffusion_lens.errors import DiffusionLensError, closest

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

WEIGHTS = Path(__file__).parent / "weights"
"""A folder for each model, as `save_pretrained` writes it."""

PREFIX = "toy:"
"""What the command line and `HookedDiffusion` put before a toy's name."""

CARD = "grades.json"
"""Beside a model's weights: how it was trained, how it is graded, the checksums of its files."""


class UnknownToyError(DiffusionLensError, LookupError):
    """No toy model of that name ships with the package."""


def names() -> tuple[str, ...]:
    """The toy models that ship with the package.

    Returns:
        Their names, sorted.
    """
    return tuple(sorted(path.parent.name for path in WEIGHTS.glob("*/model_index.json")))


@public
def folder(name: str) -> Path:
    """Where a toy model lies; diffusers loads it from there without this library.

    Args:
        name: Of the model, with or without "toy:".

    Returns:
        Its folder.

    Raises:
        UnknownToyError: If there is no such model.
    """
    name = name.removeprefix(PREFIX)
    if name not in names():
        near = closest(name, names()) or names()
        raise UnknownToyError(
            f"no toy model is called {name!r}; {len(names())} ship with the package. "
            f"Closest: {', '.join(near)}. List them with `toys.names()`."
        )
    return WEIGHTS / name


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no remark that AutoencoderTiny is another class than AutoencoderKL."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    loggers = (diffusers_logging, transformers_logging)
    bars = [(log, log.is_progress_bar_enabled()) for log in loggers]
    before = [(log, log.get_verbosity()) for log in loggers]
    for log in loggers:
        log.disable_progress_bar()
        log.set_verbosity_error()
    try:
        yield
    finally:
        for log, level in before:
            log.set_verbosity(level)
        for log, shown in bars:
            if shown:
                log.enable_progress_bar()


@public
def load(name: str, *, torch_dtype: torch.dtype | None = None) -> DiffusionPipeline:
    """Load a toy model as a plain diffusers pipeline; nothing is downloaded.

    Args:
        name: Of the model, such as "shapes-unet".
        torch_dtype: Of the weights; None for float32, though the files hold float16.

    Returns:
        A pipeline on the CPU. `call_defaults` gives the arguments that suit it.

    Raises:
        UnknownToyError: If there is no such model.
    """
    where = folder(name)

    import torch
    from diffusers import DiffusionPipeline

    with _quiet():
        pipe: Any = DiffusionPipeline.from_pretrained(where, local_files_only=True)
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.to(torch_dtype or torch.float32)
    if "transformer" in pipe.components:
        pipe.default_sample_size = 32  # a Flux pipeline has no place for this in its files
    pipe.set_progress_bar_config(disable=True)
    return pipe


@public
def card(name: str) -> dict[str, Any]:
    """What is known about a toy model: recipe, grades, checksums.

    Args:
        name: Of the model.

    Returns:
        The content of its `grades.json`.

    Raises:
        UnknownToyError: If there is no such model.
    """
    return json.loads((folder(name) / CARD).read_text(encoding="utf-8"))


def checksums(where: Path) -> dict[str, str]:
    """SHA-256 of each weight file of a model.

    Args:
        where: The model's folder.

    Returns:
        Path inside the folder to hexadecimal digest.
    """
    return {
        file.relative_to(where).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(where.rglob("*.safetensors"))
    }
