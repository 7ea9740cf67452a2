"""Finding in a cache the value that belongs where a hook fires."""

from __future__ import annotations

from torch import Tensor

from diffusion_lens.activation_cache import ActivationCache
from diffusion_lens.engine.selection import take
from diffusion_lens.errors import CacheKeyError, RunError
from diffusion_lens.hook_points.context import HookContext


def cached_part(
    cache: ActivationCache, hook: HookContext, *, name: str | None = None, step: int | None = None
) -> Tensor:
    """The cached value of the same point, step and branch, cut to what the hook sees.

    Args:
        cache: A cache of whole activations, or of the same Site; a reduced cache serves every step.
        hook: Where the hook fires.
        name: Another hook point to take the value from.
        step: Another step.

    Raises:
        CacheKeyError: If the cache does not hold the point or the branch.
        RunError: If it does not hold the step.
    """
    wanted = name or hook.name
    branches = [branch for one, branch in cache.entries if one == wanted]
    if not branches:
        raise cache.missing(wanted)
    if hook.branch not in branches:
        raise CacheKeyError(
            f"the cache holds {wanted} in the branches {branches}, the hook fired in "
            f'{hook.branch!r}; record it with branch="all", or give the Site branch={branches[0]!r}'
        )
    steps = cache.entries[wanted, hook.branch]
    at = hook.step if step is None else step
    if at not in steps and -1 not in steps:
        raise RunError(
            f"the cache holds {wanted} at the steps {sorted(steps)}, not at step {at} where the "
            "hook fired; record that step too, or give the hook's Site steps= that are there"
        )
    value = steps[at] if at in steps else steps[-1]
    kept = cache.parts.get(wanted, ())
    if kept == hook.part:
        return value
    if kept:
        raise RunError(
            f"the cache holds a part of {wanted} ({kept}), the hook sees another ({hook.part}), as "
            "(dimension, index) pairs; record the whole point, or use the same Site for both"
        )
    return take(value, hook.part)
