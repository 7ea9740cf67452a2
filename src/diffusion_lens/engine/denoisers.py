"""The denoisers of a pipeline: some have one for each range of noise levels (Wan 2.2)."""

from __future__ import annotations

from typing import Any

from torch import nn

DENOISERS = ("transformer", "unet", "transformer_2")
"""Where pipelines keep them; the first one is hooked where nothing else is asked for."""


def denoisers_of(pipe: Any) -> dict[str, nn.Module]:
    """The denoisers that a pipeline has, by attribute."""
    found = {name: getattr(pipe, name, None) for name in DENOISERS}
    # What `torch.compile` wraps has the hooks.
    return {
        name: getattr(module, "_orig_mod", module)
        for name, module in found.items()
        if module is not None
    }


def denoiser_of(pipe: Any, which: str | None = None) -> nn.Module | None:
    """The denoiser under an attribute, by default the first that there is; None for none."""
    found = denoisers_of(pipe)
    return found.get(which or next(iter(found), ""))


def further_denoisers(pipe: Any, denoiser: nn.Module) -> dict[str, nn.Module]:
    """Those that take steps of the same run beside the hooked one, by attribute."""
    return {
        name: module
        for name, module in denoisers_of(pipe).items()
        if module is not denoiser and type(module) is type(denoiser)
    }
