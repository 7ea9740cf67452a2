"""Numbers about patterns as a result: words, figures, saving."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_lens.analyses.attention_maps.collecting import Pair
from diffusion_lens.analyses.saving import Saved
from diffusion_lens.authoring import PromptTokens
from diffusion_lens.border import public
from diffusion_lens.errors import ResultError, WordError, closest, listing
from diffusion_lens.showing.one_line import counted, one_line, prompt_of

MEANINGS = {
    "entropy": ("nats", "How widely a head spreads its attention: 0 is one token alone."),
    "distance": (
        "image diagonals",
        "How far from the asking place a head looks, within the image, on average.",
    ),
    "text": ("share of attention", "How much of its attention a head pays to text tokens."),
    "image": ("share of attention", "How much of its attention a head pays to other image tokens."),
    "own": ("share of attention", "How much of its attention an image token pays to itself."),
}
"""Unit of each value, and a sentence."""
ON_A_WORD = "How much of its attention a head pays to the word, mean over the image's places."


@dataclass(frozen=True)
class HeadPatterns(Saved):
    """Numbers about the patterns of every head at every step.

    Attributes:
        mass: Share of attention on each text token, mean over image tokens, in [0, 1]; axes batch,
            step, head, token. None where the keys hold no text.
        values: By the names in `VALUES`, axes batch, step, head: `entropy` in nats; `distance`
            within the image in units of its diagonal; and the shares of attention on `text`, on the
            `image`'s other tokens and on the asking token itself (`own`), which sum to 1.
        heads: (block, head) of the head axis.
        steps: The steps.
        positions: For each entry of the token axis its place in the text stream.
        prompts: The `PromptTokens` of each sample.
        made_by: What was run and how.
        citation: What to cite.
    """

    mass: Tensor | None
    values: dict[str, Tensor]
    heads: tuple[Pair, ...]
    steps: tuple[int, ...]
    positions: tuple[int, ...]
    prompts: tuple[Any, ...]
    made_by: dict[str, Any] = field(default_factory=dict, repr=False)
    citation: str = "Raghu et al., NeurIPS 2021, arXiv 2108.08810; Tang et al., arXiv 2210.04885"

    def __post_init__(self) -> None:
        """Bring back the tokens of a result that was read from a folder."""
        object.__setattr__(self, "prompts", tuple(PromptTokens(*one) for one in self.prompts))

    @public
    def of(self, name: str) -> Float[Tensor, "batch step head"]:
        """One of the values.

        Raises:
            ResultError: If these patterns do not have it.
        """
        if name not in self.values:
            near = closest(name, self.values)
            hint = f" Closest: {near[0]!r}." if near else ""
            raise ResultError(
                f"there is no {name!r} of these patterns, there is {list(self.values)}.{hint} "
                "Text needs keys of the text stream, distance and own keys of the image"
            )
        return self.values[name]

    @public
    def word(self, word: str | int) -> Float[Tensor, "batch step head"]:
        """Share of attention on a word: the sum over its tokens.

        Raises:
            WordError: If it is not in a sample's prompt, or its tokens were left out.
            ResultError: If the keys hold no text.
        """
        if self.mass is None:
            raise ResultError("the keys of these patterns hold no text, so no word has a mass")
        if isinstance(word, str) and not self.prompts:
            raise WordError(f"{word!r} cannot be looked up: the prompts are not known")
        found = []
        for sample in range(len(self.mass)):
            places = (word,) if isinstance(word, int) else self.prompts[sample].find(word)
            missing = [place for place in places if place not in self.positions]
            if missing:
                raise WordError(
                    f"the mass of {word!r} was not kept: tokens {missing} are not among "
                    f"{listing(self.positions, most=20)}; name it in words="
                )
            rows = [self.positions.index(place) for place in places]
            found.append(self.mass[sample][..., rows].sum(-1))
        return torch.stack(found)

    @public
    def plot(self, what: str = "entropy", *, sample: int = 0) -> Any:
        """A heat map of step by head.

        Args:
            what: A name in `values`, or a word of the prompt, whose mass is shown.
            sample: Which sample.

        Raises:
            WordError: If it is neither.
            ResultError: If there is no such sample.
        """
        from diffusion_lens import viz

        shown = self.values[what] if what in self.values else self.word(what)
        if not 0 <= sample < len(shown):
            raise ResultError(f"sample {sample} was asked for, there are {len(shown)}")
        unit, note = MEANINGS.get(what, ("share of attention", ON_A_WORD))
        modules = self.made_by.get("modules", {})
        return viz.head_grid(
            shown[sample],
            rows=list(self.steps),
            columns=[f"{block}.{head}" for block, head in self.heads],
            column_notes=[modules.get(block, "") for block, _ in self.heads],
            title=f"Patterns: {what}" if what in self.values else f"Attention to “{what}”",
            note=note,
            value_name=unit,
            row_title="step",
            column_title="head (block.head)",
        )

    def __repr__(self) -> str:
        """Sizes and what there is, in one line."""
        samples, steps, heads = next(iter(self.values.values())).shape
        return one_line(
            self,
            prompt_of(self.made_by),
            f"batch {samples}, step {steps}, head {heads}",
            *self.values,
            "" if self.mass is None else f"mass on {counted(len(self.positions), 'token')}",
            made_by=self.made_by,
            look=(".of()", ".word()", ".plot()"),
        )
