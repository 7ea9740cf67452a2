"""Finding in a cache the value that belongs where a hook fires."""

from __future__ import annotations

from torch import Tensor

from diffusion_lens.activation_cache import ActivationCache
from diffusion_lens.authoring import take
from diffusion_lens.errors import CacheKeyError, RunError
from diffusion_lens.hook_points import HookContext


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
        RunError: If it does not hold the step, or another part, or is of another size.
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
    axes = cache.axes.get(wanted, hook.axes)
    if axes != hook.axes:
        raise RunError(
            f"the cache holds {wanted} with the axes {axes}, the hook sees {hook.name} with "
            f"{hook.axes}; take a point of the same axes, recorded without averaging over them"
        )
    kept = cache.parts.get(wanted, ())
    _refuse_other_lengths(cache, wanted, value, hook)
    if kept == hook.part:
        return value
    if kept:
        raise RunError(
            f"the cache holds a part of {wanted} ({kept}), the hook sees another ({hook.part}), as "
            "(dimension, index) pairs; record the whole point, or use the same Site for both"
        )
    return take(value, hook.part)


def _refuse_other_lengths(
    cache: ActivationCache, name: str, value: Tensor, hook: HookContext
) -> None:
    """Refuse values of a run with other token counts, whose indices mean other tokens.

    Raises:
        RunError: With both lengths.
    """
    lengths = cache.sizes.get(name, {})
    if name not in cache.parts:
        lengths = {axis: value.shape[hook.axes.index(axis)] for axis in hook.whole}
    for axis, length in hook.whole.items():
        if lengths.get(axis, length) != length:
            raise RunError(
                f"{hook.name}: the cache holds {name} with {lengths[axis]} entries along {axis!r} "
                f"where the hook sees {length}; prompts, image size and Site must be those of the "
                "cached run"
            )
