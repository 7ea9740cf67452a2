"""Which heads of which blocks, and which tokens, an analysis of patterns looks at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from diffusion_lens import HookedDiffusion, Run, Site
from diffusion_lens.analyses.attention_maps.collecting import Pair
from diffusion_lens.authoring import PromptTokens
from diffusion_lens.border import Number
from diffusion_lens.errors import SiteError, UnsupportedModelError, WordError, listing
from diffusion_lens.hook_points import HookPoint

HeadChoice = int | Iterable[int | tuple[int, int] | list[int]] | Mapping[tuple[int, int], Number]
"""Indices, the same in every block; (block, head) pairs; or a mapping from pairs to weights."""


@dataclass(frozen=True)
class Names:
    """A predicate over hook-point names that shows what it accepts."""

    names: tuple[str, ...]

    def __call__(self, name: str) -> bool:
        """Whether a name is one of them."""
        return name in self.names

    def __repr__(self) -> str:
        """The first few; the heads of a Site say which blocks there are."""
        return f"Names({listing(self.names, most=2)})"


@dataclass(frozen=True)
class Chosen:
    """Heads of hook points whose queries are the image and whose keys hold the text.

    Attributes:
        names: Hook point of each block.
        heads: Heads of each block.
        weights: Weight of each (block, head), or None for 1 each.
        levels: How often the latents were halved before each block.
    """

    names: Mapping[int, str]
    heads: Mapping[int, tuple[int, ...]]
    weights: Mapping[Pair, float] | None
    levels: Mapping[int, int]

    @property
    def pairs(self) -> list[Pair]:
        """Every (block, head)."""
        return [(block, head) for block, heads in self.heads.items() for head in heads]

    def only(self, blocks: Iterable[int]) -> Chosen:
        """The same heads of fewer blocks."""
        return replace(self, heads={block: self.heads[block] for block in blocks})

    def site(self, **selectors: Any) -> Site:
        """One Site for all of them."""
        names = Names(tuple(self.names[block] for block in self.heads))
        return Site(names, heads=self.pairs, query="img", **selectors)


def choose(
    model: HookedDiffusion,
    *,
    heads: Any = None,
    blocks: Iterable[int] | int | None = None,
    leave_out: Iterable[int] = (),
    points: Sequence[HookPoint] | None = None,
) -> Chosen:
    """The heads that an analysis looks at.

    Args:
        model: The model.
        heads: Indices, (block, head) pairs, or a mapping from pairs to weights; None for all.
        blocks: Only these; negative ones count from the last.
        leave_out: Blocks that are left out unless `blocks` names them.
        points: The patterns to choose from, one for each block; None for those that read text.

    Raises:
        SiteError: If a block or head does not exist, a pair is none, a weight is negative, or
            nothing is selected.
        UnsupportedModelError: If no image query of the model reads text.
    """
    if points is None:
        points = [model.points[str(site.name)] for site in model.text_pattern_sites()]
    known = {point.block: point for point in points if point.block is not None}
    if not known:
        raise UnsupportedModelError(
            f"{type(model.denoiser).__name__} has no attention of image queries to text keys"
        )
    wanted = _blocks(blocks, list(known), model.n_blocks)
    skipped = set() if wanted is not None else set(leave_out) & set(known)
    counts = {block: int(known[block].heads or 0) for block in wanted or known}
    weights = _weights(heads)
    found = _heads(heads if weights is None else list(weights), counts)
    found = {block: some for block, some in found.items() if block not in skipped}
    if not found:
        raise SiteError(
            f"heads={heads!r} selects nothing: the blocks {sorted(skipped)} are left out; name "
            "them with blocks= to include them"
        )
    return Chosen(
        names={block: known[block].name for block in found},
        heads=found,
        weights=weights,
        levels={block: known[block].level for block in found},
    )


def _blocks(blocks: Any, known: Sequence[int], count: int) -> list[int] | None:
    if blocks is None:
        return None
    given = [blocks] if isinstance(blocks, int) else list(blocks)
    asked = [block + count if block < 0 else block for block in given]
    wrong = [one for one, block in zip(given, asked, strict=True) if block not in known]
    if wrong or not asked:
        what = f"block {wrong[0]} has no such attention" if wrong else "blocks= is empty"
        raise SiteError(f"{what}; the blocks that have it are {listing(known, most=60)}")
    return sorted(set(asked))


def _are_pairs(heads: Any) -> bool:
    return isinstance(heads, list | tuple) and any(isinstance(one, list | tuple) for one in heads)


def _weights(heads: Any) -> dict[Pair, float] | None:
    if not isinstance(heads, Mapping):
        return None
    _refuse_no_pairs(list(heads))
    found = {(int(block), int(head)): float(weight) for (block, head), weight in heads.items()}
    negative = [pair for pair, weight in found.items() if weight < 0]
    if negative:
        raise SiteError(
            f"heads= gives {negative[0]} the weight {found[negative[0]]}; weights of heads are 0 "
            "or more"
        )
    kept = {pair: weight for pair, weight in found.items() if weight > 0}
    if not kept:
        raise SiteError("heads= selects nothing: no head has a weight above 0")
    return kept


def _refuse_no_pairs(given: Sequence[Any]) -> None:
    wrong = [one for one in given if not isinstance(one, tuple | list) or len(one) != 2]
    if wrong:
        raise SiteError(
            f"heads= holds {wrong[0]!r} where (block, head) pairs are meant; give pairs alone, or "
            "indices alone, which mean the same heads in every block"
        )


def _heads(heads: Any, counts: Mapping[int, int]) -> dict[int, tuple[int, ...]]:
    """The heads of each block that has some, in order of blocks."""
    if heads is None:
        return {block: tuple(range(count)) for block, count in counts.items()}
    given: list[Any] = [heads] if isinstance(heads, int) else list(heads)
    if not given:
        raise SiteError("heads= is empty; leave it out for all heads")
    if not _are_pairs(given):
        indices = sorted({int(head) for head in given})
        if max(indices) >= max(counts.values()) or min(indices) < 0:
            last = max(counts.values()) - 1
            raise SiteError(
                f"heads={given} reaches beyond the {last + 1} heads of a block, which count from 0 "
                f"to {last}; negative ones do not exist"
            )
        found = {
            block: tuple(head for head in indices if head < count)
            for block, count in counts.items()
        }
        return {block: some for block, some in found.items() if some}
    _refuse_no_pairs(given)
    pairs: set[Pair] = {(int(pair[0]), int(pair[1])) for pair in given}
    for block, head in sorted(pairs):
        if block not in counts:
            raise SiteError(
                f"heads= names {(block, head)}, but block {block} is not among the blocks "
                f"{listing(list(counts), most=60)}"
            )
        if not 0 <= head < counts[block]:
            raise SiteError(
                f"heads= names {(block, head)}, but block {block} has {counts[block]} heads, "
                "which count from 0"
            )
    blocks = sorted({block for block, _ in pairs})
    return {one: tuple(sorted(head for block, head in pairs if block == one)) for one in blocks}


def tokens_of(model: HookedDiffusion, run: Run, branch: str | None) -> tuple[PromptTokens, ...]:
    """The tokens of each sample's prompt; empty where the run has embeddings.

    Args:
        model: The model.
        run: The run.
        branch: Whose prompts: only `"uncond"` reads the negative ones.

    Raises:
        SiteError: If the model has no such branch. Several at once would be added up as one.
    """
    if branch not in model.branches:
        known = list(model.branches)
        raise SiteError(f"branch={branch!r} is none of {known}; an analysis looks at one")
    count = run.samples // run.images_per_prompt
    negative = branch == "uncond"
    kind = "negative_" if negative else ""
    main: Any = (run.settings.get("negative_prompt") or "") if negative else run.prompts
    if model.pipe is None or not (negative or run.prompts):
        return ()
    columns = []
    for part in model.spec.text_parts:
        given = run.settings.get(kind + part.prompt) or main
        columns.append([given] * count if isinstance(given, str) else list(given))
    found: dict[tuple[str, ...], PromptTokens] = {}
    for texts in zip(*columns, strict=True):
        if texts not in found:
            found[texts] = model.prompt_tokens(texts, run=run, negative=negative)
    rows = zip(*columns, strict=True)
    return tuple(found[texts] for texts in rows for _ in range(run.images_per_prompt))


def positions_of(
    prompts: Sequence[PromptTokens], words: Sequence[str | int] | None
) -> tuple[int, ...] | None:
    """The positions in the text stream of some words in any of the prompts.

    Args:
        prompts: The tokens of each sample's prompt.
        words: Words, phrases or positions; None for every token of the prompts.

    Returns:
        Ascending; None for the whole text stream, where the prompts are not known.

    Raises:
        WordError: If a word is in none of the prompts.
    """
    if words is None:
        found = {position for tokens in prompts for position in tokens.positions}
        return tuple(sorted(found)) or None
    found = {word for word in words if isinstance(word, int)}
    for word in words:
        if isinstance(word, int):
            continue
        if not prompts:
            raise WordError(
                f"{word!r} cannot be looked up: the run was given embeddings, not prompts; give "
                "positions in the text stream instead"
            )
        errors = []
        for tokens in dict.fromkeys(prompts):
            try:
                found.update(tokens.find(word))
            except WordError as error:
                errors.append(error)
        if len(errors) == len(dict.fromkeys(prompts)):
            raise errors[0]
    if not found:
        raise WordError("words= is empty; leave it out for every token of the prompt")
    return tuple(sorted(found))
