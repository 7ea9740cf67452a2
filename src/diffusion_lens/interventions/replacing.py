"""Putting values of another run in place: activation patching's setter, and frozen patterns."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from diffusion_lens.activation_cache import ActivationCache
from diffusion_lens.border import public
from diffusion_lens.errors import RunError
from diffusion_lens.hook_points import HookContext
from diffusion_lens.interventions.lookup import cached_part


@dataclass(frozen=True)
class ReplaceWith:
    """A hook that replaces what it sees by a cached value."""

    cache: ActivationCache = field(repr=True)
    name: str | None = None
    step: int | None = None

    def __call__(
        self, activation: Float[Tensor, "batch ..."], hook: HookContext
    ) -> Float[Tensor, "batch ..."]:
        """The cached value, in the activation's dtype and on its device."""
        value = cached_part(self.cache, hook, name=self.name, step=self.step).to(activation)
        if value.shape[1:] != activation.shape[1:] or value.shape[0] not in (1, len(activation)):
            raise RunError(
                f"{hook.name}: the cache holds shape {tuple(value.shape)} where the hook sees "
                f"{tuple(activation.shape)}; prompts, image size and Site must be those of the "
                "cached run"
            )
        return value.expand_as(activation).clone()


@dataclass(frozen=True)
class FreezePattern(ReplaceWith):
    """A hook that replaces a pattern by a cached one."""

    def __call__(
        self, activation: Float[Tensor, "batch head query key"], hook: HookContext
    ) -> Float[Tensor, "batch head query key"]:
        """The cached pattern."""
        if hook.name.rpartition(".")[2] != "hook_pattern":
            raise RunError(
                f"freeze_pattern works on patterns, not on {hook.name}; give a Site on "
                "hook_pattern, or use replace_with"
            )
        return super().__call__(activation, hook)


@public
def replace_with(
    cache: ActivationCache, *, name: str | None = None, step: int | None = None
) -> ReplaceWith:
    """Make a hook that replaces activations by those of another run (activation patching).

    The value comes from the same hook point, step and branch, cut to the hook's Site. A cached
    batch of one is used for every sample.

    It shows what is *sufficient* in that place, given everything else of this run; on a trajectory
    (all steps) early patches change what later ones meet.

    Args:
        cache: The other run's cache.
        name: Take the values from this hook point in place of the same one.
        step: Take those of this step in place of the same one.

    Raises:
        CacheKeyError: When it runs, if the cache does not hold the value.
        RunError: When it runs, if step or shape do not fit.
    """
    return ReplaceWith(cache, name, step)


@public
def freeze_pattern(cache: ActivationCache, *, step: int | None = None) -> FreezePattern:
    """Make a hook that holds attention patterns as they were in another run.

    With the patterns of one run and everything else of another, what differs comes through the
    values (OV), not through where heads look (QK). Downstream queries and keys still change, but
    no longer matter where patterns are frozen.

    Args:
        cache: A cache of `hook_pattern`.
        step: Freeze to the pattern of this one step; by default each step's own.

    Raises:
        CacheKeyError: When it runs, if the cache does not hold the pattern.
        RunError: When it runs, if step or shape do not fit, or the hook point is no pattern.
    """
    return FreezePattern(cache, None, step)
