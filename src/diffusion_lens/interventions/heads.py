"""Ablating and scaling attention heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_lens.activation_cache import ActivationCache
from diffusion_lens.authoring import as_factors, as_tensor
from diffusion_lens.border import Number, Seed, public
from diffusion_lens.errors import RunError
from diffusion_lens.hook_points import HookContext
from diffusion_lens.interventions.lookup import cached_part

HeadFactors = Number | Mapping[tuple[int, int], Number]
Pair = tuple[int, int]


@dataclass(frozen=True)
class AblateHeads:
    """A hook that takes the information out of the heads that its Site selects."""

    value: str
    source: ActivationCache | None = field(default=None, repr=False)
    seed: int = 0

    def __call__(
        self, activation: Float[Tensor, "batch ..."], hook: HookContext
    ) -> Float[Tensor, "batch ..."]:
        """Replace the activation."""
        refuse_no_heads("ablated", hook)
        if self.value == "zero":
            return torch.zeros_like(activation)
        given = activation if self.source is None else cached_part(self.source, hook)
        wanted = (
            activation.shape if self.value == "resample" else (len(given), *activation.shape[1:])
        )
        if given.shape != wanted:
            raise RunError(
                f"{hook.name}: the source holds shape {tuple(given.shape)} where {self.value} "
                f"needs {tuple(wanted)}; prompts, image size and Site must be those of the cached "
                "run"
            )
        if self.value == "mean":
            axes = [hook.axis("batch"), hook.axis("pos" if "pos" in hook.axes else "query")]
            return given.to(activation).mean(axes, keepdim=True).expand_as(activation).clone()
        order = _other_rows(len(given), self.seed)
        if self.source is None and len(given) < 2:
            raise RunError(
                f"resample at {hook.name} needs other samples to take values from, the batch has "
                "one; give several prompts, or source= with the cache of another run"
            )
        return given.to(activation)[as_tensor(order, activation)]


def _other_rows(count: int, seed: int) -> tuple[int, ...]:
    """A cyclic shift by a drawn number of rows: no row stays in place unless there is one."""
    generator = torch.Generator().manual_seed(seed)
    shift = 0 if count < 2 else int(torch.randint(1, count, (), generator=generator))
    return tuple((row + shift) % count for row in range(count))


@public
def ablate_heads(
    value: str = "zero",
    *,
    source: ActivationCache | None = None,
    seed: Seed = 0,
) -> AblateHeads:
    """Make a hook that ablates the heads that its Site selects.

    Zero takes the activation far from what later layers have seen; effects can then come from that
    alone. The mean keeps the average and is milder; with one prompt it still carries that prompt.
    Resampling puts in what the same heads said elsewhere and stays on the model's distribution,
    but answers "does it matter which", not "does it matter at all".

    Args:
        value: `"zero"`; `"mean"` over batch and tokens; `"resample"` from another sample.
        source: Take mean or samples from this cache (same names, steps and branch) in place of
            the running batch.
        seed: Which other sample is taken; no sample keeps its own.

    Returns:
        A hook for `hook_z`, `hook_result`, `hook_q`, `hook_k`, `hook_v` or `hook_pattern`.

    Raises:
        RunError: When it runs, if there is no other sample to take from, the source does not fit,
            or the hook point has no heads.

    Example:
        >>> site = Site("blocks.3.cross_attn.img.hook_z", heads=[5], branch="cond")
        >>> out = model.run_with_hooks(prompt, fwd_hooks=[(site, ablate_heads("mean"))])
    """
    if value not in ("zero", "mean", "resample"):
        raise RunError(f"ablate_heads({value!r}): the value is 'zero', 'mean' or 'resample'")
    if value == "zero" and source is not None:
        raise RunError("ablate_heads('zero') takes nothing from source=; leave it out")
    return AblateHeads(value, source, seed)


@dataclass(frozen=True)
class ScaleHeads:
    """A hook that multiplies heads by factors."""

    factor: HeadFactors

    @property
    def named_heads(self) -> tuple[Pair, ...]:
        """The (block, head) pairs that it must meet."""
        return pairs_of(self.factor)

    def __call__(
        self, activation: Float[Tensor, "batch ..."], hook: HookContext
    ) -> Float[Tensor, "batch ..."]:
        """Scale the activation along its head axis."""
        return activation * head_factors(self.factor, activation, hook)


def head_factors(factor: HeadFactors, activation: Tensor, hook: HookContext) -> Tensor | float:
    """Factors shaped to broadcast over the head axis; heads without one keep 1.

    Raises:
        RunError: If the point has no heads, or not one that has a factor.
    """
    refuse_no_heads("scaled by factors", hook)
    if not isinstance(factor, Mapping):
        return factor
    axis, count = hook.axis("head"), None if hook.point is None else hook.point.heads
    beyond = [head for block, head in factor if block == hook.block and head >= (count or head + 1)]
    if beyond:
        raise RunError(
            f"{hook.name}: block {hook.block} has {count} heads (0 to {(count or 0) - 1}), the "
            f"factors name head {beyond[0]}; they go by (block, head)"
        )
    assert hook.heads is not None
    values = tuple(float(factor.get((hook.layer(), head), 1.0)) for head in hook.heads)
    shape = [1] * activation.ndim
    shape[axis] = len(values)
    return as_factors(values, activation).reshape(shape)


def refuse_no_heads(what: str, hook: HookContext) -> None:
    """Refuse a hook point without a head axis.

    Raises:
        RunError: With the points that have one.
    """
    if "head" not in hook.axes:
        raise RunError(
            f"{hook.name} has no heads (axes {hook.axes}) that could be {what}; give a Site on "
            "hook_z, hook_result, hook_q, hook_k, hook_v or hook_pattern"
        )


def pairs_of(factor: HeadFactors) -> tuple[Pair, ...]:
    """The (block, head) pairs that have factors."""
    return tuple(factor) if isinstance(factor, Mapping) else ()


def checked(factor: HeadFactors, maker: str) -> HeadFactors:
    """Factors whose keys are (block, head) pairs.

    Raises:
        RunError: If there are none, or a key is something else.
    """
    if not isinstance(factor, Mapping):
        return factor
    wrong = [
        key
        for key in factor
        if not isinstance(key, tuple)
        or len(key) != 2
        or not all(hasattr(one, "__index__") and one >= 0 for one in key)
    ]
    if wrong or not factor:
        found = f"found the key {wrong[0]!r}" if wrong else "found none"
        raise RunError(
            f"{maker} takes one factor, or factors by (block, head) such as {{(4, 0): 2.0}}, both "
            f"counted from 0; {found}"
        )
    return factor


@public
def scale_heads(factor: HeadFactors) -> ScaleHeads:
    """Make a hook that multiplies heads by a factor, or each (block, head) by its own.

    On `hook_z` this scales what the head writes; on `hook_pattern` it scales the same output, since
    rows are not renormalised. Factors far from 1 leave the range that later layers have seen.

    Args:
        factor: One factor, or factors by (block, head); heads that are not named keep 1.

    Raises:
        RunError: If a key is no (block, head) pair, or, when it runs, if a block has no such head
            or the hook point has no heads.
        HookNeverFiredError: If the Sites of the hook do not have all heads that are named.
    """
    return ScaleHeads(checked(factor, "scale_heads"))
