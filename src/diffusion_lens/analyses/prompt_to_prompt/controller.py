"""The hooks of Prompt-to-Prompt: what targets attend to, made from what the source attends to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_lens import HookContext
from diffusion_lens.analyses.prompt_to_prompt.alignment import Alignment
from diffusion_lens.authoring import as_factors
from diffusion_lens.errors import RunError


@dataclass(frozen=True)
class TextEdit:
    """What is edited, for a text stream of some length.

    Attributes:
        alignments: One for each target.
        alpha: 1 where the edited pattern is used; axes step, target, token.
        equaliser: Factors on the edited columns; axes target, token.
        scaled: For each target its own columns that head relevance scales, as a mask over tokens.
    """

    alignments: Sequence[Alignment]
    alpha: Float[Tensor, "step target token"]
    equaliser: Float[Tensor, "target token"]
    scaled: Float[Tensor, "target token"]

    def to(self, pattern: Tensor) -> TextEdit:
        """The same beside a pattern and in its precision."""
        alignments = [
            replace(one, mapper=one.mapper.to(pattern), own=one.own.to(pattern))
            for one in self.alignments
        ]
        rest = (self.alpha, self.equaliser, self.scaled)
        return TextEdit(alignments, *(one.to(pattern) for one in rest))


@dataclass(frozen=True)
class EditCrossAttention:
    """A hook that edits the targets' patterns over the text; row 0 of the batch is the source.

    `edited = source @ mapper + own * target`, times the equaliser, is mixed with the target's own
    pattern column by column. Rows are not renormalised.

    Attributes:
        edit: What kind of edit.
        plan: Gives the plan for a number of text tokens.
        factors: Factors by target and (block, head) on the columns that head relevance scales.
    """

    edit: str
    plan: Callable[[int], TextEdit] = field(repr=False)
    factors: Sequence[Mapping[tuple[int, int], float]] = field(default=(), repr=False)
    placed: dict[Any, TextEdit] = field(default_factory=dict, repr=False, compare=False)

    def __call__(
        self, pattern: Float[Tensor, "row head query token"], hook: HookContext
    ) -> Float[Tensor, "row head query token"] | None:
        """Every target row edited, the source row as it is."""
        plan = self._placed(pattern)
        if hook.step >= len(plan.alpha):
            return None
        source, rows = pattern[0], [pattern[:1]]
        for number, alignment in enumerate(plan.alignments):
            alpha, target = plan.alpha[hook.step, number], pattern[number + 1]
            mapper, own = alignment.mapper, alignment.own
            if self.factors:
                scaled = plan.scaled[number]
                mapper, own = mapper * (1 - scaled), own * (1 - scaled)
                own = own + scaled * self._factors(number, hook, pattern)[:, None, None]
            edited = (source @ mapper + target * own) * plan.equaliser[number]
            rows.append((edited * alpha + target * (1 - alpha))[None])
        return torch.cat(rows)

    def _placed(self, pattern: Tensor) -> TextEdit:
        # Kept: a copy to an accelerator at every firing would wait for it.
        key = (pattern.shape[-1], pattern.device, pattern.dtype)
        if key not in self.placed:
            self.placed[key] = self.plan(pattern.shape[-1]).to(pattern)
        return self.placed[key]

    def _factors(self, number: int, hook: HookContext, pattern: Tensor) -> Float[Tensor, " head"]:
        block, heads = hook.block, hook.heads
        assert block is not None
        assert heads is not None
        factors = tuple(self.factors[number].get((block, head), 1.0) for head in heads)
        return as_factors(factors, pattern)


@dataclass(frozen=True)
class KeepSelfAttention:
    """A hook that puts the source's queries and keys, or pattern, in place of every target's.

    Where queries and keys are the source's, so is the pattern, and no pattern is computed for it.

    Attributes:
        most: Largest number of image positions of an attention that is changed.
        last: The block after which some attention must have been small enough.
    """

    most: int
    last: int
    seen: dict[int, int] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, activation: Tensor, hook: HookContext) -> Tensor | None:
        """The source's row in every row, unless there are too many positions."""
        axis = hook.axis("query" if "query" in hook.axes else "pos")
        count = activation.shape[axis]
        assert hook.block is not None
        self.seen[hook.block] = count
        if hook.block == self.last and min(self.seen.values()) > self.most:
            smallest = min(self.seen.values())
            raise RunError(
                f"self_replace was asked for, but no self-attention of this run has at most "
                f"self_max_tokens={self.most} image positions: the smallest has {smallest}. Give "
                f"self_max_tokens={smallest} or more, or self_replace=0"
            )
        if count > self.most:
            return None
        return activation[:1].expand_as(activation).clone()
