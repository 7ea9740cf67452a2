"""Finding in a cache the value that belongs where a hook fires."""

from __future__ import annotations

from torch import Tensor

from diffusion_lens.activation_cache import ActivationCache
from diffusion_lens.engine.selection import take
from diffusion_lens.errors import RunError
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
    branch = hook.branch if hook.branch in branches or len(branches) != 1 else branches[0]
    if branch not in branches:
        cache.branch(hook.branch)
        cache[wanted]
    steps = cache.entries[wanted, branch]
    at = hook.step if step is None else step
    if at not in steps and -1 not in steps:
        raise RunError(
            f"the cache holds {wanted} at the steps {sorted(steps)}, not at step {at} where the "
            "hook fired; record that step too, or give the hook's Site steps= that are there"
        )
    value = steps[at] if at in steps else steps[-1]
    already_cut = all(value.shape[dim] == length for dim, length in _selected(hook).items())
    return value if already_cut else take(value, hook.part)


def _selected(hook: HookContext) -> dict[int, int]:
    """How many entries the hook sees along the dimensions that its Site selects from."""
    return {
        dim: (index.stop - index.start) if isinstance(index, slice) else len(index)
        for dim, index in hook.part
    }
