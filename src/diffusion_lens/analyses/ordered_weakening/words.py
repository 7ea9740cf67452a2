"""Hooks that weaken what some heads read from the words of the prompt.

Source: Park et al., Cross-Attention Head Position Patterns Can Align with Human Visual Concepts in
Text-to-Image Generative Models, arXiv 2412.02237, section 4.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from diffusion_lens import HookContext, HookedDiffusion, Site
from diffusion_lens.border import Number, Size, public
from diffusion_lens.errors import RunError, WordError


@dataclass(frozen=True)
class WeakenWords:
    """A hook that multiplies the pattern columns of each prompt's own words.

    Attributes:
        factor: The factor.
        columns: For each sample of the batch, columns as the hook sees them.
    """

    factor: float
    columns: tuple[tuple[int, ...], ...]

    def __call__(
        self, activation: Float[Tensor, "batch head query key"], hook: HookContext
    ) -> Float[Tensor, "batch head query key"]:
        """Scale the columns."""
        if len(activation) != len(self.columns):
            raise RunError(
                f"{hook.name}: a batch of {len(activation)} for {len(self.columns)} prompts; the "
                "hooks were made for other prompts, or with num_images_per_prompt above 1"
            )
        factors = activation.new_ones(len(self.columns), activation.shape[-1])
        for row, columns in enumerate(self.columns):
            factors[row, list(columns)] = self.factor
        return activation * factors[:, None, None]


@public
def weaken_words(
    model: HookedDiffusion,
    prompts: str | Sequence[str],
    heads: Sequence[tuple[int, int] | list[int]],
    *,
    factor: Number = -2.0,
    words: str | Sequence[str] | None = None,
    steps: Any = None,
    branch: str = "cond",
    max_sequence_length: Size | None = None,
) -> list[tuple[Site, WeakenWords]]:
    """Make the hooks that multiply the attention of some heads to the words of the prompt.

    Start, end and padding tokens are left alone, and rows are not renormalised. The published
    factor of −2 is no ablation: it turns round and doubles what a head reads from the words; 0 and
    0.5 are the milder controls.

    Args:
        model: The model.
        prompts: The prompts of the batch, in order.
        heads: (block, head) pairs, as `HeadRelevance.top` gives them; one or more.
        factor: The factor.
        words: Only this word or phrase, or these, each in every prompt; None for every
            space-separated word, articles included, as published.
        steps: At which steps; None for all.
        branch: In which guidance branch.
        max_sequence_length: The run's, which may cut words away; None is the pipeline's own.

    Returns:
        (Site, hook) pairs for `fwd_hooks`.

    Raises:
        WordError: If a word is not in a prompt, or there is none.
        RunError: If a head does not read the text, is named twice, or there is none.

    Source: arXiv 2412.02237, section 4.
    """
    each = [prompts] if isinstance(prompts, str) else list(prompts)
    asked = [words] if isinstance(words, str) else words
    kept = max_sequence_length
    found = [(one, model.prompt_tokens(one, max_sequence_length=kept)) for one in each]
    tokens = [
        sorted({at for word in _weakened(prompt, asked) for at in known.find(word)})
        for prompt, known in found
    ]
    union = sorted({at for some in tokens for at in some})
    hook = WeakenWords(factor, tuple(tuple(map(union.index, some)) for some in tokens))
    _refuse_odd_heads(heads)
    by_block: dict[int, list[int]] = {}
    for block, head in heads:
        by_block.setdefault(block, []).append(head)
    sites = {model.points[str(site.name)].block: site for site in model.text_pattern_sites()}
    missing = [block for block in by_block if block not in sites]
    if missing:
        raise RunError(
            f"block {missing[0]} has no head that reads text; blocks that do are {list(sites)}"
        )
    selection = {"key": ("txt", union), "steps": steps, "branch": branch}
    return [(sites[block].with_(heads=some, **selection), hook) for block, some in by_block.items()]


def _weakened(prompt: str, words: Sequence[str] | None) -> Sequence[str]:
    """The words of a prompt that are weakened."""
    found = prompt.split() if words is None else words
    if not found:
        what = f"the prompt {prompt!r} has no word" if words is None else "words= is empty"
        raise WordError(f"{what}: nothing would be weakened; leave words= out for every word")
    return found


def _refuse_odd_heads(heads: Sequence[tuple[int, int] | list[int]]) -> None:
    if not heads:
        raise RunError(
            "heads= is empty: no head would be weakened. Give (block, head) pairs, such as "
            "relevance.top(concept, 5); for images of no weakened head run the model without hooks"
        )
    odd = [pair for pair in heads if len(pair) != 2]
    if odd:
        raise RunError(f"heads= holds {odd[0]!r}; give (block, head) pairs")
    twice = [pair for pair, count in Counter(map(tuple, heads)).items() if count > 1]
    if twice:
        raise RunError(f"heads= names {twice[0]} twice; name every (block, head) once")
