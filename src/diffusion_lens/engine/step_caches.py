"""Whether a denoiser saves work by going on with what an earlier step gave.

diffusers' step caches are hooks in its own registry that stand in for a module's forward.
`denoiser.enable_cache(config)` leaves a mark; the functions of `diffusers.hooks` that do the same
(`apply_first_block_cache(denoiser, config)`, …) leave none, so the registries themselves are asked.
"""

from __future__ import annotations

from typing import Any

from torch import nn

ALWAYS_FORWARD = frozenset({"PeftInputAutocastDisableHook"})
"""Hooks of diffusers that stand in for a forward only to call it every time."""


def step_cache_on(denoiser: nn.Module) -> str | None:
    """The step cache, or layer skip, that is on a denoiser or any module of it.

    Offloading and casting hooks surround a forward and are no caches. A hook that stands in for the
    forward is taken for one, a class that nobody knows here, too: it may leave modules out.

    Args:
        denoiser: The denoiser.

    Returns:
        What diffusers calls it (`first_block_cache`, `layer_skip`, …); None where there is none.
    """
    for module in denoiser.modules():
        registry = module.__dict__.get("_diffusers_hook")
        for hook in () if registry is None else registry.hooks.values():
            if hasattr(hook, "new_forward") and type(hook).__name__ not in ALWAYS_FORWARD:
                return _name(hook)
    config = getattr(denoiser, "_cache_config", None)
    return None if config is None else type(config).__name__


def _name(hook: Any) -> str:
    """The module of diffusers that the hook comes from; its class name where it is another's."""
    package, _, module = type(hook).__module__.rpartition(".")
    return module if package == "diffusers.hooks" else type(hook).__name__
