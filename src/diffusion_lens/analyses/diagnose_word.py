"""In which sense a model reads a word: maps of the heads of each candidate concept, side by side.

Source: Selective Aggregation of Attention Maps in Diffusion Models, arXiv 2604.05906, of which only
the abstract was at hand: it says that maps of the heads relevant to a concept show how an ambiguous
word was understood. The procedure and the scores here are our own reading.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_lens import HookedDiffusion, Run
from diffusion_lens.analyses.attention_maps import attention_maps
from diffusion_lens.analyses.map_gallery import map_gallery
from diffusion_lens.analyses.saving import Saved
from diffusion_lens.border import PipelineSetting, public
from diffusion_lens.errors import ConceptError, ResultError, SiteError, listing, refuse_unknown
from diffusion_lens.showing.one_line import one_line, prompt_of

CITATION = "Selective Aggregation of Attention Maps in Diffusion Models, arXiv 2604.05906"
SCORES = ("share", "focus", "agreement")


@public
def focus(maps: Float[Tensor, "... height width"]) -> Float[Tensor, ...]:
    """How concentrated maps are: 0 for an even map, 1 for a single place.

    Args:
        maps: Not negative; each is divided by its sum first.

    Returns:
        1 minus the entropy over places, in units of its largest value.
    """
    flat = maps.flatten(-2)
    shares = flat / flat.sum(-1, keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
    return 1 - torch.special.entr(shares).sum(-1) / math.log(max(flat.shape[-1], 2))


@public
def agreement(
    maps: Float[Tensor, "... height width"], other: Float[Tensor, "... height width"]
) -> Float[Tensor, ...]:
    """Correlation of maps with another over places, in [-1, 1]; 0 for an even map."""
    first, second = (
        one.flatten(-2) - one.flatten(-2).mean(-1, keepdim=True) for one in (maps, other)
    )
    product = (first * second).sum(-1)
    norms = first.norm(dim=-1) * second.norm(dim=-1)
    return product / norms.clamp_min(torch.finfo(maps.dtype).tiny)


@runtime_checkable
class Ranking(Protocol):
    """What names the heads of a concept, as `HeadRelevance` does."""

    def top(self, concept: str, k: int | float) -> Any:
        """(block, head) pairs, the most relevant first."""
        ...


@dataclass(frozen=True)
class WordDiagnosis(Saved):
    """What the heads of each candidate concept see of a word.

    Attributes:
        word: The word.
        concepts: The candidates.
        maps: Maps of the word by the heads of each concept; axes batch, concept, height, width.
        every: The map of all heads; axes batch, height, width.
        scores: Axes batch, concept. `share`: mean attention of the concept's heads on the word in
            units of that of all heads; `focus`: see `focus`; `agreement`: correlation with `every`.
        heads: The (block, head) pairs of each concept.
        images: The images, where the pipeline gave pictures.
        made_by: What was run and how.
        citation: What to cite.
    """

    word: str
    concepts: tuple[str, ...]
    maps: Tensor
    every: Tensor
    scores: dict[str, Tensor]
    heads: dict[str, tuple[tuple[int, int], ...]]
    images: tuple[Any, ...] = ()
    made_by: dict[str, Any] = field(default_factory=dict, repr=False)
    citation: str = CITATION

    @public
    def of(self, concept: str) -> Float[Tensor, "batch height width"]:
        """The map by the heads of one concept.

        Raises:
            ConceptError: If it is none of the candidates.
        """
        refuse_unknown("concept", concept, self.concepts, error=ConceptError)
        return self.maps[:, self.concepts.index(concept)]

    @public
    def largest(self, by: str = "share") -> tuple[str, ...]:
        """For each sample the candidate with the largest score.

        Heads of some concepts attend more, or more narrowly, whatever the word means: compare a
        prompt with one that fixes the sense before you believe this.

        Raises:
            ResultError: If there is no such score.
        """
        refuse_unknown("by", by, self.scores, error=ResultError)
        return tuple(self.concepts[at] for at in self.scores[by].argmax(1).tolist())

    @public
    def plot(self, *, sample: int = 0, images: Any = None, **settings: Any) -> Any:
        """The maps side by side over the image, that of all heads first.

        Args:
            sample: Which sample.
            images: The image to draw over, where the run gave none.
            **settings: Further arguments of `viz.overlays`.

        Raises:
            ResultError: If there is no image, or no such sample.
        """
        from diffusion_lens import viz

        if images is None and not self.images:
            raise ResultError("there is no image to draw over: the run gave latents; give images=")
        if not 0 <= sample < len(self.maps):
            raise ResultError(f"sample {sample} was asked for, there are {len(self.maps)}")
        panels = torch.cat([self.every[sample, None], self.maps[sample]])
        image = self.images[sample] if images is None else images
        style = {
            "title": f"What the heads of each concept see of “{self.word}”",
            "note": "Share of attention that each place pays to the word: mean over all heads, and "
            "over the heads of each concept.",
            "value_name": "share of attention",
        }
        titles = ["all heads", *self.concepts]
        return viz.overlays(image, panels, titles=titles, **{**style, **settings})

    def __repr__(self) -> str:
        """Word, candidates and shares in one line."""
        shares = [
            dict(zip(self.concepts, row, strict=True))
            for row in ([round(one, 3) for one in row] for row in self.scores["share"].tolist())
        ]
        return one_line(
            self,
            prompt_of(self.made_by),
            f"{self.word!r} by heads of each concept",
            f"share {listing(shares, most=4)}",
            made_by=self.made_by,
            look=(".of()", ".largest()", ".plot()"),
        )

    def _repr_html_(self) -> str | None:
        """The first image and its maps, that of all heads first."""
        maps = [("all heads", self.every[0]), *((one, self.of(one)[0]) for one in self.concepts)]
        return map_gallery(self.images, maps, line=repr(self))


@public
def diagnose_word(
    model: HookedDiffusion,
    prompts: str | Sequence[str] | Run,
    word: str,
    concepts: Sequence[str] | Mapping[str, Any],
    *,
    relevance: Ranking | None = None,
    k: int | float = 0.25,
    occurrence: int | None = None,
    **settings: PipelineSetting,
) -> WordDiagnosis:
    """Compare what the heads of several concepts see of one word.

    For an ambiguous word ("an apple": a fruit or a brand) the concept whose heads light up where
    the object is drawn is the likelier reading. This is a correlation: `steer_word` tests whether
    those heads carry the sense.

    Args:
        model: The model.
        prompts: A prompt, several, or a `Run`; the word must be in each.
        word: A word or phrase.
        concepts: Two candidates or more: names that `relevance` knows, or a mapping from names to
            (block, head) pairs.
        relevance: What gives the heads of a concept by `.top(concept, k)`, such as the result of
            `head_relevance`.
        k: How many heads of each concept, or which fraction of all (a float).
        occurrence: Which occurrence of the word; None for the mean over all.
        **settings: Arguments of `attention_maps` and of the pipeline's own call.

    Returns:
        A map and scores for each candidate.

    Raises:
        ConceptError: On fewer than two candidates, names without `relevance`, or no heads.
        SiteError: If a candidate's heads do not exist.
        WordError: If the word is not in a prompt.
    """
    pairs = _pairs(concepts, relevance, k)
    found = attention_maps(model, prompts, words=word, keep="head", **settings)
    by_head = found.word(word, occurrence=occurrence)
    if by_head.ndim != 4:
        raise SiteError("diagnose_word compares heads: leave keep= out, and give one frame")
    place = {pair: at for at, pair in enumerate(found.heads)}
    maps = []
    for concept, some in pairs.items():
        missing = [pair for pair in some if pair not in place]
        if missing:
            raise SiteError(
                f"{concept!r} has the head {missing[0]}, which is not among the {len(place)} that "
                "read the text here"
            )
        maps.append(by_head[:, [place[pair] for pair in some]].mean(1))
    stacked, every = torch.stack(maps, 1), by_head.mean(1)
    tiny = torch.finfo(every.dtype).tiny
    return WordDiagnosis(
        word=word,
        concepts=tuple(pairs),
        maps=stacked,
        every=every,
        scores={
            "share": stacked.mean((-2, -1)) / every.mean((-2, -1)).clamp_min(tiny)[:, None],
            "focus": focus(stacked),
            "agreement": agreement(stacked, every[:, None].expand_as(stacked)),
        },
        heads=pairs,
        images=found.images,
        made_by={**found.made_by, "k": k, "relevance": repr(relevance)},
    )


def _pairs(concepts: Any, relevance: Any, k: int | float) -> dict[str, tuple[tuple[int, int], ...]]:
    if isinstance(concepts, str) or len(concepts) < 2:
        raise ConceptError(
            f"concepts={concepts!r}: a diagnosis compares two candidates or more, such as "
            '["Colour", "Shape"]'
        )
    if isinstance(concepts, Mapping):
        for name, some in concepts.items():
            if isinstance(some, Mapping) or not len(some):
                raise ConceptError(
                    f"the heads of {name!r} are {some!r}; (block, head) pairs are needed, one or "
                    "more, without weights"
                )
        return {
            name: tuple((int(pair[0]), int(pair[1])) for pair in some)
            for name, some in concepts.items()
        }
    if relevance is None:
        raise ConceptError(
            f"the heads of {list(concepts)} are not known: give relevance=head_relevance(...), or "
            "concepts= as a mapping from names to (block, head) pairs"
        )
    return {name: tuple(relevance.top(name, k)) for name in concepts}
