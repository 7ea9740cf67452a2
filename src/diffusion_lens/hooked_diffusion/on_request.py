"""The description of a class that is not known, read off its model where that is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from torch import nn

from diffusion_lens.architectures.registry import is_known
from diffusion_lens.architectures.spec import DenoiserSpec
from diffusion_lens.describing import ask_pipeline
from diffusion_lens.engine.denoisers import denoiser_of
from diffusion_lens.errors import ArgumentError
from diffusion_lens.extensions import load

GROUP = "diffusion_lens.describers"
"""Entry points of what describes a class on the spot; this package's own checks the contract."""


def described_on_request(
    pipe: Any, which: str | None, describe: bool | Mapping[str, Any]
) -> DenoiserSpec | None:
    """The provisional description of a pipeline's denoiser; None where its class is known.

    Args:
        pipe: The pipeline, or a bare denoiser.
        which: The pipeline's attribute that holds the denoiser; None for the first.
        describe: Arguments of a short run of the pipeline, or of one call of a bare denoiser; True
            is a run at a small size.

    Raises:
        ArgumentError: If a bare denoiser comes without the arguments of a call.
        UnsupportedModelError: If too little of it can be read.
    """
    bare = isinstance(pipe, nn.Module)
    denoiser = pipe if bare else denoiser_of(pipe, which)
    if denoiser is None or is_known(type(denoiser).__name__):
        return None
    given = describe if isinstance(describe, Mapping) else {}
    if not bare:
        asked = ask_pipeline(pipe, denoiser, given)
        return _describer()(denoiser, asked.inputs, asked.answers)
    if not given:
        raise ArgumentError(
            f"describe={describe!r}: {type(denoiser).__name__} is called by hand, so say how: "
            "describe={'hidden_states': ..., 'timestep': ..., ...} with the arguments of one call"
        )
    return _describer()(denoiser, given, {})


def _describer() -> Any:
    (entry,) = entry_points(group=GROUP, name="contract")
    return load(entry, fits=callable, wanted="a function").value
