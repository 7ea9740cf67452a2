"""Scaling attention to tokens: columns of patterns times a factor, rows not renormalised."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from diffusion_lens.border import public
from diffusion_lens.errors import RunError
from diffusion_lens.hook_points import HookContext
from diffusion_lens.interventions.heads import (
    HeadFactors,
    Pair,
    checked,
    head_factors,
    pairs_of,
)


@dataclass(frozen=True)
class ScaleTokenColumns:
    """A hook that multiplies the pattern columns that its Site selects."""

    factor: HeadFactors

    @property
    def named_heads(self) -> tuple[Pair, ...]:
        """The (block, head) pairs that it must meet."""
        return pairs_of(self.factor)

    def __call__(
        self, activation: Float[Tensor, "batch head query key"], hook: HookContext
    ) -> Float[Tensor, "batch head query key"]:
        """Scale the selected columns."""
        if hook.axes[-2:] != ("query", "key"):
            raise RunError(
                f"scale_token_columns works on patterns, {hook.name} has axes {hook.axes}; give a "
                "Site on hook_pattern"
            )
        return activation * head_factors(self.factor, activation, hook)


@public
def scale_token_columns(factor: HeadFactors) -> ScaleTokenColumns:
    """Make a hook that multiplies the attention paid to some tokens.

    The Site says which: `Site("blocks.*.cross_attn.hook_pattern", key="cat", branch="cond")`. Rows
    are not renormalised, so a factor above 1 adds to what the head writes and a negative one turns
    it round; other columns stay as they are.

    Args:
        factor: One factor, or factors by (block, head); heads that are not named keep 1.

    Raises:
        RunError: If a key is no (block, head) pair, or, when it runs, if a block has no such head
            or the hook point is no pattern.
        HookNeverFiredError: If the Sites of the hook do not have all heads that are named.

    Source: Cross-Attention Head Position Patterns Can Align with Human Visual Concepts, arXiv
        2412.02237, section 5 (rescaling by head relevance vectors); Prompt-to-Prompt, arXiv
        2208.01626, section 3.2 (attention re-weighting).
    """
    return ScaleTokenColumns(checked(factor, "scale_token_columns"))
