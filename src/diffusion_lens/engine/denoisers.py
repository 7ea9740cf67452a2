"""The denoisers of a pipeline.

Some have one for each range of noise levels (Wan 2.2), or one for each branch (Ideogram 4).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from diffusion_lens.hook_points.names import SECOND

DENOISERS = ("transformer", "unet", "transformer_2", "unconditional_transformer")
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


BY_BRANCH = ("unconditional_transformer",)
"""Those that run beside the first in every step, for another branch."""


def further_denoisers(pipe: Any, denoiser: nn.Module) -> dict[str, nn.Module]:
    """Those that run in the same run beside the hooked one, by attribute."""
    return {
        name: module
        for name, module in denoisers_of(pipe).items()
        if module is not denoiser and type(module) is type(denoiser)
    }


def take_turns(pipe: Any) -> bool:
    """Whether a pipeline's denoisers take its steps in turn, not each a branch of every step."""
    found = denoisers_of(pipe)
    first = next(iter(found.values()), None)
    return first is not None and any(
        name not in BY_BRANCH for name in further_denoisers(pipe, first)
    )


def attribute_of(pipe: Any, denoiser: nn.Module) -> str:
    """Where a pipeline keeps a denoiser."""
    return next((name for name, one in denoisers_of(pipe).items() if one is denoiser), "")


def by_prefix(pipe: Any, denoiser: nn.Module) -> dict[str, nn.Module]:
    """A pipeline's denoisers by what their names begin with: the hooked one first."""
    further = list(further_denoisers(pipe, denoiser).values())
    return {"": denoiser} | ({SECOND: further[0]} if further else {})
