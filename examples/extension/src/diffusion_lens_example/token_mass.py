"""Token mass: how much attention each head that reads the text pays to a word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffusion_lens import HookContext, HookedDiffusion, Run
from diffusion_lens.analyses.saving import Saved


def mass(pattern: Tensor) -> Tensor:
    """Mean over image places of the attention to some tokens, summed over the tokens.

    Args:
        pattern: Attention to these tokens alone, axes batch, head, query, key.

    Returns:
        Axes batch, head; a share of attention, in [0, 1].
    """
    return pattern.sum(-1).mean(-1)


class MassCollector:
    """A hook that keeps the mean mass of every head over steps.

    It only reads, and says so: such hooks get the activation itself instead of a copy.
    """

    read_only = True

    def __init__(self) -> None:
        """Start from nothing."""
        self.sums: dict[int, Tensor] = {}
        self.steps: set[int] = set()

    def __call__(self, activation: Tensor, hook: HookContext) -> None:
        """Add a step's mass."""
        found = mass(activation.detach()).cpu()
        self.sums[hook.layer()] = self.sums.get(hook.layer(), 0) + found
        self.steps.add(hook.step)


@dataclass(frozen=True)
class TokenMass(Saved):
    """How much attention each head pays to a word.

    Attributes:
        values: For each block its heads' mass, axes batch, head; a share of attention, in [0, 1].
        word: The word.
        made_by: What was run.
        citation: What to cite.
    """

    values: dict[int, Tensor]
    word: str
    made_by: dict[str, Any] = field(default_factory=dict, repr=False)
    citation: str = "Your paper"

    def plot(self, sample: int = 0) -> Any:
        """A plotly heat map of block by head; absent heads stay blank."""
        from diffusion_lens import viz

        heads = max(block.shape[-1] for block in self.values.values())
        grid = torch.full((len(self.values), heads), torch.nan)
        for row, block in enumerate(self.values.values()):
            grid[row, : block.shape[-1]] = block[sample]
        return viz.head_grid(
            grid,
            rows=[f"block {block}" for block in self.values],
            columns=range(heads),
            column_title="head",
            value_name="share of attention",
            title=f"Attention to “{self.word}”",
        )


def token_mass(
    model: HookedDiffusion, prompts: str | Sequence[str] | Run, *, word: str, **settings: Any
) -> TokenMass:
    """Mean attention that each head pays to a word, over image places and steps.

    A large value does not say that the head needs the word: weaken it and look.

    Args:
        model: Any model whose image reads text.
        prompts: What to generate; the word must be in it.
        word: A word or phrase.
        **settings: Arguments of the call, such as `seed` and `num_inference_steps`.

    Returns:
        The mass of every head.
    """
    collector = MassCollector()
    sites = [site.with_(key=("txt", word), branch="cond") for site in model.text_pattern_sites()]
    out = model.run_with_hooks(prompts, fwd_hooks=[(site, collector) for site in sites], **settings)
    count = len(collector.steps)
    return TokenMass(
        values={block: total / count for block, total in sorted(collector.sums.items())},
        word=word,
        made_by=out.made_by.as_dict(),
    )
