"""TransformerLens for diffusion models."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusion_lens.activation_cache import ActivationCache as ActivationCache
    from diffusion_lens.architectures import register_architecture as register_architecture
    from diffusion_lens.engine.registration import read_only as read_only
    from diffusion_lens.hook_points import HookContext as HookContext
    from diffusion_lens.hook_points import HookPoint as HookPoint
    from diffusion_lens.hook_points import Site as Site
    from diffusion_lens.hooked_diffusion import HookedDiffusion as HookedDiffusion
    from diffusion_lens.hooked_diffusion import Output as Output
    from diffusion_lens.hooked_diffusion import Prediction as Prediction
    from diffusion_lens.hooked_diffusion import Run as Run

_HOMES = {
    "ActivationCache": "activation_cache",
    "HookContext": "hook_points",
    "HookPoint": "hook_points",
    "HookedDiffusion": "hooked_diffusion",
    "Output": "hooked_diffusion",
    "Prediction": "hooked_diffusion",
    "Run": "hooked_diffusion",
    "Site": "hook_points",
    "read_only": "engine.registration",
    "register_architecture": "architectures",
}
__all__ = [
    "ActivationCache",
    "HookContext",
    "HookPoint",
    "HookedDiffusion",
    "Output",
    "Prediction",
    "Run",
    "Site",
    "read_only",
    "register_architecture",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: diffusers alone takes seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module 'diffusion_lens' has no attribute {name!r}")
    return getattr(importlib.import_module(f"diffusion_lens.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted({*globals(), *__all__})
