"""The vote of each attention head, from its queries and foreign keys, beside the generation.

Source: Cross-Attention Head Position Patterns Can Align with Human Visual Concepts, arXiv
2412.02237, section 3, equation 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffusion_lens import HookContext
from diffusion_lens.analyses.head_relevance.result import Head
from diffusion_lens.analyses.head_relevance.words import ConceptWords
from diffusion_lens.border import Count, public
from diffusion_lens.errors import ConceptError, refuse_unknown
from diffusion_lens.showing.one_line import counted

VOTES = ("argmax", "strength", "margin")


def concept_shares(
    queries: Float[Tensor, "batch pos head d_head"],
    keys: Float[Tensor, "*batch head row d_head"],
    owners: Int[Tensor, " row"],
    *,
    concepts: int,
    start_rows: int = 0,
) -> Float[Tensor, "batch head concept"]:
    """How much attention each head pays to each concept, were the text made of concept words.

    Args:
        queries: Of the image.
        keys: Of the words, already multiplied by the factor on scores.
        owners: The concept of each row.
        concepts: Number of concepts.
        start_rows: Leading rows that take part in the softmax and belong to no concept.

    Returns:
        Softmax over rows, mean over image tokens, then mean over the rows of each concept.

    Source: arXiv 2412.02237, section 3.
    """
    scores = queries.transpose(1, 2).to(keys.dtype) @ keys.mT
    means = scores.softmax(-1).mean(-2)[..., start_rows:]
    owners = owners[start_rows:]
    counts = torch.zeros(concepts, dtype=means.dtype, device=means.device)
    counts.index_add_(0, owners, torch.ones_like(means[0, 0]))
    shares = means.new_zeros(*means.shape[:2], concepts).index_add_(-1, owners, means)
    return shares / counts


def cast_votes(
    shares: Float[Tensor, "batch head concept"], vote: str = "argmax"
) -> Float[Tensor, "batch head concept"]:
    """What each head gives to each concept.

    Args:
        shares: Attention of each head to each concept.
        vote: `"argmax"`: 1 to the largest (ties to the first), as published, so that every head
            has the same say. `"margin"`: the winner gets (largest − second) / largest, so that
            undecided heads count little. `"strength"`: the shares themselves; heads with strong
            attention to any text dominate.

    Raises:
        ConceptError: If the vote is unknown.

    Source: arXiv 2412.02237, section 3 and appendix B.2.
    """
    refuse_unknown("vote", vote, VOTES, error=ConceptError)
    if vote == "strength":
        return shares
    best = shares.argmax(-1, keepdim=True)
    if vote == "argmax":
        return torch.zeros_like(shares).scatter_(-1, best, 1.0)
    first, second = shares.topk(2, dim=-1).values.unbind(-1)
    margin = ((first - second) / first.clamp(min=torch.finfo(first.dtype).tiny)).unsqueeze(-1)
    return torch.zeros_like(shares).scatter_(-1, best, margin)


class HeadRelevanceVotes:
    """Hooks that count the votes of heads; they read queries and keep nothing but counts.

    In a U-Net the collector itself is the hook, at `blocks.*.cross_attn.img.hook_q` of branch
    `cond`; the words' keys are known beforehand. In an MM-DiT, where keys of text change from
    block to block, `on_image` reads `attn.img.hook_q` and `on_keys` `attn.concept.hook_k`.

    Args:
        words: The words.
        heads: The heads, block after block.
        keys: Keys of all words by block; None in an MM-DiT.
        vote: As for `cast_votes`.
        include_start_token: Whether the start token takes part in the softmax.
        parts: In how many parts of the prompts votes are counted apart.
        per_step: Whether votes are counted apart by step.
    """

    read_only = True

    @public
    def __init__(
        self,
        words: ConceptWords,
        heads: Sequence[Head],
        keys: Mapping[int, Tensor] | None = None,
        *,
        vote: str = "argmax",
        include_start_token: bool = True,
        parts: Count = 1,
        per_step: bool = True,
    ) -> None:
        """Start from nothing."""
        self.words = words
        self.heads = tuple(heads)
        self.keys = keys
        self.vote = vote
        self.include_start_token = include_start_token
        self.per_step = per_step
        self.offsets: dict[int, int] = {}
        for index, head in enumerate(self.heads):
            self.offsets.setdefault(head.block, index)
        shape = (len(self.heads), len(words.concepts))
        self.totals: dict[int, Tensor] = {}
        self.parts = torch.zeros(parts, *shape, dtype=torch.float64)
        self.prompts_in_parts = [0] * parts
        self._owners: Tensor | None = None
        self._queries: Tensor | None = None
        self.begin([0], generator=torch.Generator().manual_seed(0))

    def begin(
        self,
        numbers: Sequence[int],
        *,
        generator: torch.Generator,
        owners: Sequence[int] = (),
    ) -> None:
        """Begin a run.

        Args:
            numbers: For each sample the number of its prompt.
            generator: Draws the words; its samples share what it draws.
            owners: In an MM-DiT the concept of each row of the concept stream.
        """
        self.numbers = list(numbers)
        self.generator = generator
        self._owners = torch.tensor(owners, dtype=torch.long) if owners else None
        self._steps: dict[int, Tensor] = {}
        self._samples: Tensor | None = None

    def __call__(self, queries: Tensor, hook: HookContext) -> None:
        """Let the heads of a U-Net's layer vote on words drawn for this call."""
        assert self.keys is not None
        keys = self.keys[hook.layer()]
        rows, owners = self.words.draw(self.generator, include_start_token=self.include_start_token)
        device = keys.device
        drawn = keys.index_select(1, torch.tensor(rows, device=device))
        owned = torch.tensor(owners, device=device)
        shown = _of_the_grid(queries, hook)
        self._vote(shown, drawn, owned, hook, start_rows=int(self.include_start_token))

    def on_image(self, queries: Tensor, hook: HookContext) -> None:
        """Keep the image's queries until the words of the same block come."""
        self._queries = _of_the_grid(queries, hook)

    on_image.read_only = True  # type: ignore[attr-defined]

    def on_keys(self, keys: Tensor, hook: HookContext) -> None:
        """Let the heads of an MM-DiT's block vote."""
        assert self._queries is not None
        assert self._owners is not None
        wide = torch.promote_types(keys.dtype, torch.float32)
        scaled = keys.transpose(1, 2).to(wide) * keys.shape[-1] ** -0.5
        self._vote(self._queries, scaled, self._owners.to(keys.device), hook)
        self._queries = None

    on_keys.read_only = True  # type: ignore[attr-defined]

    def _vote(
        self,
        queries: Tensor,
        keys: Tensor,
        owners: Tensor,
        hook: HookContext,
        *,
        start_rows: int = 0,
    ) -> None:
        count = len(self.words.concepts)
        with torch.no_grad(), torch.autocast(queries.device.type, enabled=False):
            shares = concept_shares(queries, keys, owners, concepts=count, start_rows=start_rows)
            votes = cast_votes(shares, self.vote)
        at = self.offsets[hook.layer()]
        place = slice(at, at + votes.shape[1])
        step = hook.step if self.per_step else -1
        if step not in self._steps:
            self._steps[step] = votes.new_zeros(len(self.heads), count)
        if self._samples is None:
            self._samples = votes.new_zeros(len(votes), len(self.heads), count)
        self._steps[step][place] += votes.sum(0)
        self._samples[:, place] += votes

    def end(self) -> None:
        """Add what the run counted to the totals."""
        for step, votes in self._steps.items():
            added = votes.double().cpu()
            self.totals[step] = self.totals[step] + added if step in self.totals else added
        assert self._samples is not None
        numbers = [number % len(self.parts) for number in self.numbers]
        self.parts.index_add_(0, torch.tensor(numbers), self._samples.double().cpu())
        for number in dict.fromkeys(self.numbers):
            self.prompts_in_parts[number % len(self.parts)] += 1
        self._steps, self._samples = {}, None

    def __repr__(self) -> str:
        """As a report shows it."""
        concepts = counted(len(self.words.concepts), "concept")
        return f"HeadRelevanceVotes({concepts}, vote={self.vote!r})"


def _of_the_grid(queries: Tensor, hook: HookContext) -> Tensor:
    """The queries of the image's own tokens, without references and fillers behind them."""
    return queries[:, : math.prod(hook.grid)]
