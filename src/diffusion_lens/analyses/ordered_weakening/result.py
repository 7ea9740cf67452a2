"""Weakening curves as a value: scores of every image, curves, the area between them.

Source: Cross-Attention Head Position Patterns Can Align with Human Visual Concepts, arXiv
2412.02237, section 4. The area between the curves and its interval are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_lens.analyses.head_relevance.result import CITATION
from diffusion_lens.analyses.saving import Saved
from diffusion_lens.border import Count, Level, Seed, public
from diffusion_lens.errors import ResultError, listing
from diffusion_lens.showing.gallery import gallery
from diffusion_lens.showing.one_line import counted, one_line


@dataclass(frozen=True)
class WeakeningCurves(Saved):
    """What is left of a concept as more and more heads are weakened.

    Attributes:
        concept: The concept.
        counts: How many heads are weakened at each point; begins at 0, ends at all.
        scores: For each order, axes score, permutation, count, sample. There is one permutation,
            except for random orders. nan where a score does not apply.
        score_names: Along the first axis.
        prompts: Of each sample.
        seeds: Of each sample.
        images: For each order, by permutation, count and sample; None where they were not kept.
        made_by: What was run and how.
        citation: What to cite.
    """

    concept: str
    counts: tuple[int, ...]
    scores: Mapping[str, Tensor]
    score_names: tuple[str, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    images: Mapping[str, list[list[list[Any]]]] | None = None
    made_by: dict[str, Any] = field(default_factory=dict, repr=False)
    citation: str = CITATION

    @public
    def curve(self, order: str, score: str | None = None) -> Float[Tensor, " count"]:
        """Mean score at each point, over samples and permutations.

        Args:
            order: `"most"`, `"least"` or `"random"`.
            score: Which score; None for the first.
        """
        return self._of(order, score).nanmean((0, 2))

    @public
    def auc(self, order: str, score: str | None = None) -> float:
        """Mean height of a curve over the number of weakened heads, by the trapezoid rule."""
        return self._area(self.curve(order, score))

    @public
    def area(self, score: str | None = None, *, above: str = "least", below: str = "most") -> float:
        """Area between two curves, in units of the score.

        Above 0 where weakening the most relevant heads first destroys the concept sooner.

        Args:
            score: Which score; None for the first.
            above: The order whose curve should be higher.
            below: The order whose curve should be lower.
        """
        return self.auc(above, score) - self.auc(below, score)

    @public
    def area_interval(
        self,
        score: str | None = None,
        *,
        above: str = "least",
        below: str = "most",
        level: Level = 0.95,
        draws: Count = 2000,
        seed: Seed = 0,
    ) -> tuple[float, float]:
        """Interval of the area over prompts: a bootstrap that keeps a prompt's samples together.

        Args:
            score: Which score; None for the first.
            above: As for `area`.
            below: As for `area`.
            level: Share of the bootstrap inside.
            draws: Bootstrap samples.
            seed: Of the bootstrap.

        Returns:
            Lower and upper end; nan where a single prompt was drawn.
        """
        prompts = list(dict.fromkeys(self.prompts))
        if len(prompts) < 2:
            return float("nan"), float("nan")
        owner = torch.tensor([prompts.index(prompt) for prompt in self.prompts])
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randint(len(prompts), (draws, len(prompts)), generator=generator)
        weights = torch.zeros(draws, len(prompts)).scatter_add_(
            1, chosen, torch.ones(draws, len(prompts))
        )
        found = []
        for order in (above, below):
            values = self._of(order, score).mean(0)  # count sample
            known = values.isfinite()
            each = weights[:, owner]
            total = each @ values.nan_to_num().mT
            found.append(total / (each @ known.float().mT))
        areas = torch.tensor([self._area(one) for one in found[0] - found[1]])
        areas = areas[areas.isfinite()]
        tail = (1 - level) / 2
        return float(areas.quantile(tail)), float(areas.quantile(1 - tail))

    @public
    def plot(self, score: str | None = None) -> Any:
        """The curves of all orders."""
        from diffusion_lens import viz

        return viz.curves(
            list(self.counts),
            {f"{order} first": self.curve(order, score) for order in self.scores},
            x_title="weakened heads",
            y_title=score or self.score_names[0],
            title=f"Weakening heads by their relevance to {self.concept}",
            note="Mean score of the images when that many heads are weakened; a curve that falls "
            "sooner weakens heads that matter more.",
        )

    def __repr__(self) -> str:
        """Concept, orders, sizes and scores in one line."""
        return one_line(
            self,
            f"{self.concept} over 0 to {counted(self.counts[-1], 'head')}",
            f"orders {', '.join(self.scores)}",
            counted(len(self.prompts), "sample"),
            f"scores {listing(self.score_names)}",
            "with images" if self.images is not None else "",
            made_by=self.made_by,
            look=(".curve()", ".area()", ".plot()"),
        )

    def _repr_html_(self) -> str | None:
        """The first sample's images of the first order, as far as they were kept."""
        if not self.images:
            return None
        order, images = next(iter(self.images.items()))
        captions = [f"{count} weakened, {order} first" for count in self.counts]
        return gallery([point[0] for point in images[0]], captions=captions, line=repr(self))

    def _of(self, order: str, score: str | None) -> Float[Tensor, "permutation count sample"]:
        if order not in self.scores:
            raise ResultError(f"order={order!r} was not run; there are {list(self.scores)}")
        name = score or self.score_names[0]
        if name not in self.score_names:
            raise ResultError(f"no score {name!r}; there are {list(self.score_names)}")
        return self.scores[order][self.score_names.index(name)]

    def _area(self, curve: Tensor) -> float:
        x = torch.tensor(self.counts, dtype=curve.dtype)
        return float(torch.trapezoid(curve, x) / (x[-1] - x[0]))
