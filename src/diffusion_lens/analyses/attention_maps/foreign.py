"""Patterns of words that need not be in the prompt: their keys meet the image's own queries.

In a U-Net the keys are the layer's projection of the word, encoded alone, as head relevance vectors
use them. In a model with joint attention they come from concept-token streams, which pass through
the text's own weights and see each other, too. The image is the same bit for bit: nothing attends
to these keys.

Source: Cross-Attention Head Position Patterns Can Align with Human Visual Concepts, arXiv
2412.02237, section 3 (keys of words encoded alone); ConceptAttention, arXiv 2502.04320, section 4
(concept tokens). Maps made this way are our own reading.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffusion_lens import HookContext, HookedDiffusion, Run, Site
from diffusion_lens.analyses.attention_maps.collecting import Aggregation, PatternSums
from diffusion_lens.analyses.attention_maps.selecting import Chosen
from diffusion_lens.authoring import ENCODING, encode_concepts, text_context, text_keys
from diffusion_lens.errors import SiteError, UnsupportedModelError, refuse_unknown

AMONG = ("prompt", "foreign")


def appended(
    scores: Float[Tensor, "*some word"],
    normaliser: Float[Tensor, "*some"],
    owners: Sequence[slice],
) -> Float[Tensor, "*some word"]:
    """Attention to the tokens of each word, if that word alone were appended to the keys.

    Args:
        scores: Scaled products of queries with the words' keys.
        normaliser: Logarithm of the sum of exponentials over the keys that are there.
        owners: The columns of each word.

    Returns:
        Shares in [0, 1]; one word's do not depend on the other words.
    """
    scores = scores - normaliser.unsqueeze(-1)
    parts = []
    for columns in owners:
        own = scores[..., columns]
        total = torch.logsumexp(torch.cat([torch.zeros_like(own[..., :1]), own], -1), -1)
        parts.append((own - total.unsqueeze(-1)).exp())
    return torch.cat(parts, -1)


class ForeignKeys:
    """Hooks that add up the patterns of foreign words, block by block.

    Args:
        sums: Where they are added.
        owners: The columns of each word.
        among: `"prompt"` or `"foreign"`; see `attention_maps`.
        keys: Keys of each block with axes head, word, d_head, where they are the same throughout.
    """

    def __init__(
        self,
        sums: PatternSums,
        owners: Sequence[slice],
        *,
        among: str,
        keys: Mapping[int, Tensor] | None = None,
    ) -> None:
        """Nothing was seen yet."""
        self.sums = sums
        self.owners = tuple(owners)
        self.among = among
        self.keys = keys
        self._query: Tensor | None = None
        self._reference: Tensor | None = None
        self._normaliser: Tensor | None = None

    def on_query(self, activation: Tensor, hook: HookContext) -> None:
        """Keep the image's queries of a block."""
        assert hook.heads is not None
        block = hook.layer()
        if block not in self.sums.grids:
            self.sums.grids[block], self.sums.heads[block] = hook.grid, hook.heads
        wide = torch.promote_types(activation.dtype, torch.float32)
        self._query = activation.detach().transpose(1, 2).to(wide) * activation.shape[-1] ** -0.5

    def on_reference(self, activation: Tensor, _hook: HookContext) -> None:
        """Keep the keys of the reference tokens."""
        self._reference = activation.detach().transpose(1, 2)

    def on_pattern(self, activation: Tensor, hook: HookContext) -> None:
        """Find the normaliser of each row: score minus logarithm of the share of attention.

        Of the reference tokens each row takes the one it attends to most: the share of another may
        be too small to have a logarithm.
        """
        assert self._query is not None and self._reference is not None
        share, largest = activation.detach().max(-1, keepdim=True)
        scores = self._query @ self._reference.to(self._query.dtype).mT
        log_share = share.clamp_min(torch.finfo(share.dtype).tiny).log()
        self._normaliser = (scores.gather(-1, largest) - log_share).squeeze(-1)
        if self.keys is not None:
            self._add(self.keys[hook.layer()][None], hook)

    def on_concept(self, activation: Tensor, hook: HookContext) -> None:
        """Take the keys of a concept stream."""
        self._add(activation.detach().transpose(1, 2), hook)

    for _hook in (on_query, on_reference, on_pattern, on_concept):
        _hook.read_only = True  # type: ignore[attr-defined]
    del _hook

    def _add(self, keys: Tensor, hook: HookContext) -> None:
        assert self._query is not None and self._normaliser is not None
        scores = self._query @ keys.to(self._query.dtype).mT
        if self.among == "foreign":
            pattern = scores.softmax(-1)
        else:
            pattern = appended(scores, self._normaliser, self.owners)
        self._query = self._normaliser = None
        self.sums.steps[hook.step] = None
        self.sums.add(
            pattern, hook.layer(), hook.step if "step" in self.sums.aggregation.keep else None
        )


@dataclass(frozen=True)
class ForeignHooks:
    """What the foreign words of a run need.

    Attributes:
        hooks: The hooks.
        sums: What they add up.
        rows: The columns of each word.
        chosen: The heads that see foreign words.
    """

    hooks: list[tuple[Site, Any]]
    sums: PatternSums
    rows: dict[str, slice]
    chosen: Chosen


@contextlib.contextmanager
def foreign_hooks(
    model: HookedDiffusion,
    words: Sequence[str],
    chosen: Chosen,
    aggregation: Aggregation,
    *,
    among: str,
    reference: Sequence[int],
    run: Run,
    **selectors: Any,
) -> Iterator[ForeignHooks]:
    """The hooks for foreign words; concept streams are open while the context is.

    Args:
        model: The model.
        words: The words.
        chosen: Heads.
        aggregation: What is kept apart.
        among: `"prompt"` or `"foreign"`.
        reference: The text tokens from whose scores and shares of attention the normalisers of
            rows are found; empty for all.
        run: The run, for how its prompts are encoded.
        **selectors: Steps and branch.

    Yields:
        The hooks, and which heads they see: in Flux and SD3 those of blocks with concept streams.

    Raises:
        SiteError: If `among` is unknown.
        UnsupportedModelError: If no chosen block can take foreign words.
    """
    refuse_unknown("foreign_among", among, AMONG, error=SiteError)
    sums = PatternSums(aggregation)
    keys_of = ("txt", list(reference)) if reference else "txt"
    if model.spec.concepts is None:
        context, rows = _encoded(model, words, run)
        keys = {block: _keys(model, chosen, block, context) for block in chosen.heads}
        collector = ForeignKeys(sums, list(rows.values()), among=among, keys=keys)
        yield ForeignHooks(
            _sites(chosen, collector, keys_of, **selectors), sums, dict(rows), chosen
        )
        return
    with model.concept_streams(
        list(words),
        max_sequence_length=run.text_length,
        encoder_settings={name: run.settings[name] for name in ENCODING if name in run.settings},
    ) as streams:
        seen = chosen.only(
            block for block in chosen.heads if _concept_keys(chosen, block) in model.points
        )
        if not seen.heads:
            raise UnsupportedModelError(
                f"foreign= needs concept streams, which only the blocks {list(streams.blocks)} of "
                f"{type(model.denoiser).__name__} carry; the chosen ones are {list(chosen.heads)}"
            )
        collector = ForeignKeys(sums, list(streams.rows.values()), among=among)
        hooks = _sites(seen, collector, keys_of, **selectors)
        for block, heads in seen.heads.items():
            site = Site(_concept_keys(seen, block), heads=heads, **selectors)
            hooks.append((site, collector.on_concept))
        yield ForeignHooks(hooks, sums, dict(streams.rows), seen)


def _concept_keys(chosen: Chosen, block: int) -> str:
    return _prefix(chosen, block) + ".concept.hook_k"


def _prefix(chosen: Chosen, block: int) -> str:
    return chosen.names[block].removesuffix(".hook_pattern")


def _sites(
    chosen: Chosen, collector: ForeignKeys, reference: Any, **selectors: Any
) -> list[tuple[Site, Any]]:
    hooks: list[tuple[Site, Any]] = []
    for block, heads in chosen.heads.items():
        prefix = _prefix(chosen, block)
        given = {"heads": heads, **selectors}
        pattern = Site(chosen.names[block], query="img", key=reference, **given)
        hooks += [
            (Site(f"{prefix}.img.hook_q", **given), collector.on_query),
            (Site(f"{prefix}.txt.hook_k", pos=reference, **given), collector.on_reference),
            (pattern, collector.on_pattern),
        ]
    return hooks


def _encoded(
    model: HookedDiffusion, words: Sequence[str], run: Run
) -> tuple[Tensor, Mapping[str, slice]]:
    """Each word encoded alone, as cross-attention reads it: rows of all, and which are whose."""
    found, rows = encode_concepts(
        model.pipe,
        model.spec.text_parts,
        list(words),
        device=model.device,
        max_sequence_length=run.text_length,
    )
    with torch.no_grad():
        given = found[0].to(model.device, model.dtype)
        return text_context(model.denoiser, model.spec, given), rows


def _keys(model: HookedDiffusion, chosen: Chosen, block: int, context: Tensor) -> Tensor:
    """Keys of text rows by a cross-attention layer itself; axes head, word, d_head."""
    attention = model.denoiser.get_submodule(model.points[chosen.names[block]].module)
    return text_keys(attention, context)[list(chosen.heads[block])]
