"""Head relevance vectors as a value: counts of votes, vectors, rankings, stability.

Source: Cross-Attention Head Position Patterns Can Align with Human Visual Concepts, arXiv
2412.02237, section 3 and appendices I and J.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from diffusion_lens.analyses.head_relevance.words import concept_index
from diffusion_lens.analyses.saving import Saved
from diffusion_lens.border import Count, Level, Number, Seed, public
from diffusion_lens.errors import ResultError, refuse_unknown
from diffusion_lens.showing.one_line import counted, one_line

CITATION = (
    "Park et al., Cross-Attention Head Position Patterns Can Align with Human Visual Concepts in "
    "Text-to-Image Generative Models, ICLR 2025, arXiv 2412.02237"
)
UNIT = "relevance (1 = mean head)"
MEANING = (
    "Share of a concept's votes that a head gives, times the number of heads: 1 is the mean head, "
    "0 a head that never votes for it."
)
ORDERS = ("most", "least", "random")


class Head(NamedTuple):
    """One attention head.

    Attributes:
        block: Index of the block in hook-point names.
        head: Index of the head in its layer.
        module: Native path of the attention module; empty where no model was at hand.
        name: As the paper's files spell it: place, layer inside the place, head.
    """

    block: int
    head: int
    module: str
    name: str


@dataclass(frozen=True)
class HeadRelevance(Saved):
    """How relevant each attention head is to each concept.

    Attributes:
        vectors: Head relevance vectors, axes concept, head; not negative. Each row sums to the
            number of heads, so that 1 is the mean; a concept without a single vote has zeros.
        concepts: The concepts.
        words: Concept to its words.
        heads: The heads, block after block.
        votes: What was counted, axes step, concept, head; whole numbers for `vote="argmax"`. None
            where only vectors were published.
        parts: The same votes over all steps, counted apart in disjoint parts of the prompts, axes
            part, concept, head; None where they are not known.
        prompts_in_parts: How many prompts each part holds.
        steps: The steps along the first axis of `votes`; (-1,) where they were not kept apart.
        vote: What a head gives at each call: `"argmax"`, `"strength"` or `"margin"`.
        prompts: Number of prompts.
        made_by: What was run and how.
        citation: What to cite.
    """

    vectors: Tensor
    concepts: tuple[str, ...]
    words: Mapping[str, tuple[str, ...]]
    heads: tuple[Any, ...]
    votes: Tensor | None = None
    parts: Tensor | None = None
    prompts_in_parts: tuple[int, ...] = ()
    steps: tuple[int, ...] = (-1,)
    vote: str = "argmax"
    prompts: int = 0
    made_by: dict[str, Any] = field(default_factory=dict, repr=False)
    citation: str = CITATION

    def __post_init__(self) -> None:
        """Bring heads that were read from a file back into their class."""
        object.__setattr__(self, "heads", tuple(Head(*head) for head in self.heads))

    def __repr__(self) -> str:
        """Sizes in one line."""
        apart = "" if self.steps == (-1,) else counted(len(self.steps), "step")
        return one_line(
            self,
            f"{counted(len(self.concepts), 'concept')} x {counted(len(self.heads), 'head')}",
            counted(self.prompts, "prompt") if self.prompts else "as published",
            apart,
            f"vote={self.vote!r}",
            made_by=self.made_by,
            look=(".vector()", ".top()", ".plot()"),
        )

    # -- reading ------------------------------------------------------------------------------

    @public
    def vector(self, concept: str) -> Float[Tensor, " head"]:
        """The head relevance vector of one concept.

        Raises:
            ConceptError: If it is none of the concepts.
        """
        return self.vectors[concept_index(concept, self.concepts)]

    @property
    def vote_share(self) -> dict[str, float]:
        """Share of all votes that each concept won, in [0, 1].

        Normalising a vector hides how rarely its concept wins: where the share is tiny, the vector
        rests on few votes. Read it beside every vector.

        Raises:
            ResultError: If the votes are not known.
        """
        won = self._votes().sum((0, 2)).double()
        shares = won / won.sum().clamp(min=torch.finfo(won.dtype).tiny)
        return dict(zip(self.concepts, shares.tolist(), strict=True))

    @public
    def order(self, concept: str, order: str = "most", *, seed: Seed = 0) -> tuple[int, ...]:
        """Indices of all heads, those to begin with first; ties keep the order of the heads.

        Args:
            concept: For which concept.
            order: `"most"` relevant first, `"least"` relevant first, or `"random"`.
            seed: Of the random order.

        Raises:
            ResultError: If the order is unknown.
        """
        vector = self.vector(concept)
        refuse_unknown("order", order, ORDERS, error=ResultError)
        if order == "random":
            generator = torch.Generator().manual_seed(seed)
            return tuple(torch.randperm(len(vector), generator=generator).tolist())
        return tuple(vector.argsort(descending=order == "most", stable=True).tolist())

    @public
    def top(self, concept: str, k: Number) -> tuple[tuple[int, int], ...]:
        """The most relevant heads, as `Site(heads=…)` and the hook makers take them.

        Args:
            concept: For which concept.
            k: How many, or which fraction of all heads (a float in (0, 1], rounded up).

        Returns:
            (block, head) pairs, the most relevant first.

        Raises:
            ResultError: If there are not as many heads.
        """
        total = len(self.heads)
        count = k if isinstance(k, int) else math.ceil(k * total - 1e-9)
        if not 0 < count <= total:
            raise ResultError(
                f"top({concept!r}, {k!r}): there are {counted(total, 'head')}; give a number from "
                f"1 to {total}, or a fraction (a float) in (0, 1]"
            )
        return tuple(self.heads[index][:2] for index in self.order(concept)[:count])

    @public
    def factors(self, values: Float[Tensor, " head"]) -> dict[tuple[int, int], float]:
        """A value for each head as the (block, head) mapping that `scale_token_columns` takes.

        Raises:
            ResultError: If there are not as many values as heads.
        """
        if len(values) != len(self.heads):
            raise ResultError(
                f"{counted(len(values), 'value')} for {counted(len(self.heads), 'head')}; give one "
                "for each"
            )
        return {head[:2]: value for head, value in zip(self.heads, values.tolist(), strict=True)}

    # -- steps --------------------------------------------------------------------------------

    def per_step(self) -> Float[Tensor, "step concept head"]:
        """Head relevance vectors of each step on its own; zeros where a concept had no vote.

        Raises:
            ResultError: If votes were not kept apart by step.
        """
        if self.steps == (-1,):
            raise ResultError(
                "the votes of the steps were not kept apart; run head_relevance with per_step=True"
            )
        return vectors_of(self._votes())

    @public
    def step_similarity(self, concept: str | None = None) -> Float[Tensor, "step step"]:
        """Cosine similarity of the vectors of every two steps.

        Args:
            concept: Of one concept; None for the mean over concepts that have votes in both steps.

        Returns:
            In [0, 1]; nan where no concept has votes in both steps.
        """
        vectors = self.per_step()
        if concept is not None:
            at = concept_index(concept, self.concepts)
            vectors = vectors[:, at : at + 1]
        return _cosine(vectors[:, None], vectors[None]).nanmean(-1)

    # -- how far to trust it ------------------------------------------------------------------

    @public
    def interval(
        self, concept: str, *, level: Level = 0.95, draws: Count = 1000, seed: Seed = 0
    ) -> tuple[Float[Tensor, " head"], Float[Tensor, " head"]]:
        """Interval of a vector over prompts: a bootstrap over the parts of the prompts.

        It says what other prompts from the same source would have given, not what other words,
        seeds of training or models would.

        Args:
            concept: Of which concept.
            level: Share of the bootstrap inside.
            draws: Bootstrap samples.
            seed: Of the bootstrap.

        Returns:
            Lower and upper end for each head.

        Raises:
            ResultError: If there are not at least two parts.
        """
        parts = self._filled_parts()[:, concept_index(concept, self.concepts)]
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randint(len(parts), (draws, len(parts)), generator=generator)
        weights = torch.zeros(draws, len(parts), dtype=torch.float64)
        weights.scatter_add_(1, chosen, torch.ones_like(weights))
        vectors = vectors_of(weights @ parts.double())
        tail = (1 - level) / 2
        return vectors.quantile(tail, 0), vectors.quantile(1 - tail, 0)

    @public
    def split_half(self, *, draws: Count = 100, seed: Seed = 0) -> Float[Tensor, "draw concept"]:
        """Cosine similarity of the vectors from two random halves of the prompts.

        Args:
            draws: How often the parts are split.
            seed: Of the splits.

        Returns:
            In [0, 1]; nan where a concept has no vote in one of the halves.

        Raises:
            ResultError: If there are not at least two parts.
        """
        parts = self._filled_parts().double()
        generator = torch.Generator().manual_seed(seed)
        found = []
        for _ in range(draws):
            order = torch.randperm(len(parts), generator=generator)
            half = len(parts) // 2
            halves = [vectors_of(parts[some].sum(0)) for some in (order[:half], order[half:])]
            found.append(_cosine(*halves))
        return torch.stack(found)

    # -- changing, joining, keeping -----------------------------------------------------------

    @public
    def clamp(self, most: Number) -> HeadRelevance:
        """The same with every element of every vector at most `most` (the paper's SDXL: 9).

        Vectors of models with many heads have single elements far above 1 (up to 66 in SDXL's),
        which destroy an image when they rescale attention. Votes stay as they are.
        """
        made_by = {**self.made_by, "clamp": most}
        return replace(self, vectors=self.vectors.clamp(max=most), made_by=made_by)

    @public
    def merge(self, *others: HeadRelevance) -> HeadRelevance:
        """The result of all prompts together: votes add up.

        The results must come from different prompts or seeds; the same votes twice are counted
        twice.

        Raises:
            ResultError: If they are of other concepts, words, heads, steps or votes, or were
                counted with and without the start token.
        """
        every = (self, *others)
        for one in others:
            for name in ("concepts", "words", "heads", "steps", "vote"):
                mine, theirs = getattr(self, name), getattr(one, name)
                if mine != theirs:
                    raise ResultError(
                        f"results with different {name} cannot be merged: {_short(mine)} and "
                        f"{_short(theirs)}"
                    )
        sources = [about for one in every for about in one.made_by.get("merged", [one.made_by])]
        for name in ("model", "include_start_token"):
            known = {about[name] for about in sources if name in about}
            if len(known) > 1:
                raise ResultError(
                    f"results with different {name} cannot be merged: {sorted(map(str, known))}"
                )
        if any(one.votes is None or "clamp" in one.made_by for one in every):
            raise ResultError("only results with votes can be merged, and before they are clamped")
        votes = torch.stack([one._votes() for one in every]).sum(0)
        parts, counts = _joined_parts(every)
        return replace(
            self,
            vectors=vectors_of(votes.sum(0)),
            votes=votes,
            parts=parts,
            prompts_in_parts=counts,
            prompts=sum(one.prompts for one in every),
            made_by={"merged": sources},
        )

    @public
    def plot(self, concept: str | None = None) -> Any:
        """A heat map: concept by head, or layer by head for one concept."""
        from diffusion_lens import viz

        if concept is None:
            return viz.head_grid(
                self.vectors,
                rows=list(self.concepts),
                columns=[f"{head.block}.{head.head}" for head in self.heads],
                column_notes=[head.module or head.name for head in self.heads],
                title="Head relevance",
                note=MEANING,
                value_name=UNIT,
                row_title="concept",
                column_title="head (block.head)",
            )
        blocks = list(dict.fromkeys(head.block for head in self.heads))
        grid = torch.full((len(blocks), 1 + max(head.head for head in self.heads)), math.nan)
        cells = [["" for _ in row] for row in grid]
        for head, value in zip(self.heads, self.vector(concept).tolist(), strict=True):
            grid[blocks.index(head.block), head.head] = value
            place = f"head {head.block}.{head.head}"
            cells[blocks.index(head.block)][head.head] = f"{place} ({head.module or head.name})"
        return viz.head_grid(
            grid,
            rows=[f"block {block}" for block in blocks],
            columns=[str(head) for head in range(grid.shape[1])],
            title=f"Head relevance: {concept}",
            note=MEANING,
            value_name=UNIT,
            column_title="head of the block",
            cells=cells,
        )

    def _votes(self) -> Tensor:
        if self.votes is None:
            raise ResultError(
                "only vectors were published, not votes; give load_published the ranking too"
            )
        return self.votes

    def _filled_parts(self) -> Tensor:
        filled = [part for part, count in enumerate(self.prompts_in_parts) if count]
        if self.parts is None or len(filled) < 2:
            raise ResultError(
                f"this needs votes of two prompts or more, kept apart; there are {len(filled)} "
                "parts with prompts"
            )
        return self.parts[filled]


@public
def vectors_of(votes: Shaped[Tensor, "*batch head"]) -> Float[Tensor, "*batch head"]:
    """Head relevance vectors: each row of votes scaled so that it sums to the number of heads.

    Args:
        votes: Votes for a concept from each head; not negative.

    Returns:
        In float32; zeros where there is no vote.

    Source: arXiv 2412.02237, section 3; $H C_c / |C_c|_1$.
    """
    wide = votes.double()
    total = wide.sum(-1, keepdim=True)
    scaled = wide * (votes.shape[-1] / total.clamp(min=torch.finfo(wide.dtype).tiny))
    return torch.where(total > 0, scaled, 0.0).float()


def _joined_parts(results: tuple[HeadRelevance, ...]) -> tuple[Tensor | None, tuple[int, ...]]:
    """Parts added up, with the prompts in each; None where a result has none."""
    tables = [one.parts for one in results if one.parts is not None]
    if len(tables) < len(results):
        return None, ()
    size = max(map(len, tables))
    total = tables[0].new_zeros(size, *tables[0].shape[1:])
    counts = [0] * size
    for one, table in zip(results, tables, strict=True):
        total[: len(table)] += table
        for part, count in enumerate(one.prompts_in_parts):
            counts[part] += count
    return total, tuple(counts)


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    """Along the last axis, the others broadcast; nan where one of them is empty."""
    found = torch.cosine_similarity(one.double(), other.double(), dim=-1)
    empty = (one.sum(-1) == 0) | (other.sum(-1) == 0)
    return found.masked_fill(empty, math.nan).float()


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 120 else f"{text[:117]}…"
