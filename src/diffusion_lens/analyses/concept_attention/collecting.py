"""Hooks that turn the vectors of every block into running sums, so that memory does not grow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_lens import HookContext, Site
from diffusion_lens.analyses.concept_attention.presets import SPACES, Preset
from diffusion_lens.analyses.concept_attention.scores import concept_scores, normalised
from diffusion_lens.authoring import ConceptStreams

WITH_CONCEPTS = "attn.img_with_concepts.hook_z"
"""z of the image where concepts are in the place of the prompt."""


class ScoreSums:
    """Scores each block at each step, then averages; or averages products, and scores the mean.

    Args:
        preset: What of it concerns scores.
        count: How many concepts there are; further rows are fillers, dropped after the softmax.
        keep: `"step"`, `"block"`, both or none: what to keep apart; the mean goes over the rest.
    """

    def __init__(self, preset: Preset, *, count: int, keep: Sequence[str] = ()) -> None:
        """Start from nothing."""
        self.softmax = {"softmax_over": preset.softmax_over, "temperature": preset.temperature}
        self.last = preset.scores_first
        self.count = count
        self.keep = tuple(keep)
        self.sums: dict[tuple[int | None, int | None], tuple[Tensor, int]] = {}

    def add(self, concepts: Tensor, image: Tensor, hook: HookContext) -> None:
        """Score a block."""
        how: dict[str, Any] = {"softmax_over": "nothing"} if self.last else self.softmax
        scores = concept_scores(concepts, image, **how).detach()
        scores = scores if self.last else scores[:, : self.count]
        key = (
            hook.step if "step" in self.keep else None,
            hook.layer() if "block" in self.keep else None,
        )
        total, number = self.sums.get(key, (torch.zeros_like(scores), 0))
        self.sums[key] = (total + scores, number + 1)

    def result(self) -> Tensor:
        """Means over what is not kept; axes batch, (step), (block), concept, pos."""
        steps = list(dict.fromkeys(step for step, _ in self.sums))
        blocks = list(dict.fromkeys(block for _, block in self.sums))
        means = {key: self._scored(total / number) for key, (total, number) in self.sums.items()}
        rows = [torch.stack([means[step, block] for block in blocks], 1) for step in steps]
        maps = torch.stack(rows, 1)
        if "block" not in self.keep:
            maps = maps.squeeze(2)
        return maps if "step" in self.keep else maps.squeeze(1)

    def _scored(self, mean: Tensor) -> Tensor:
        how: dict[str, Any] = self.softmax
        return normalised(mean, **how)[:, : self.count] if self.last else mean


class MeanVectors:
    """Averages the vectors of each block over steps, then scores the averages.

    Args:
        preset: What of it concerns scores.
        count: How many concepts there are; further rows are fillers, dropped after the softmax.
        keep: `"block"` to keep blocks apart.
    """

    def __init__(self, preset: Preset, *, count: int, keep: Sequence[str] = ()) -> None:
        """Start from nothing."""
        self.softmax = {"softmax_over": preset.softmax_over, "temperature": preset.temperature}
        self.count = count
        self.keep = tuple(keep)
        self.sums: dict[int, tuple[Tensor, Tensor, int]] = {}

    def add(self, concepts: Tensor, image: Tensor, hook: HookContext) -> None:
        """Add up the vectors of a block."""
        concepts, image = concepts.detach().float(), image.detach().float()
        before = self.sums.get(hook.layer())
        self.sums[hook.layer()] = (
            (concepts, image, 1)
            if before is None
            else (before[0] + concepts, before[1] + image, before[2] + 1)
        )

    def result(self) -> Tensor:
        """Scores of the means; axes batch, (block), concept, pos."""
        found = []
        how: dict[str, Any] = self.softmax
        for concepts, image, number in self.sums.values():
            directions = F.normalize(concepts / number, dim=-1)
            scores = concept_scores(directions, image / number, **how)
            found.append(scores[:, : self.count])
        maps = torch.stack(found, 1)
        return maps if "block" in self.keep else maps.mean(1)


class VectorPairs:
    """Two hooks that bring together the concepts' and the image's vectors of each block.

    Args:
        preset: Which vectors.
        streams: The open concept streams.
        sums: Where the pairs go.
    """

    def __init__(
        self, preset: Preset, streams: ConceptStreams, sums: ScoreSums | MeanVectors
    ) -> None:
        """Start from nothing."""
        self.preset = preset
        self.streams = streams
        self.sums = sums
        self.waiting: dict[str, Tensor] = {}
        self.steps: dict[int, None] = {}
        self.blocks: dict[int, None] = {}
        self.grid: tuple[int, ...] = ()

    def hooks(self, blocks: Sequence[int], **where: Any) -> list[tuple[Site, Any]]:
        """Both hooks at each block.

        Args:
            blocks: The blocks.
            **where: Fields of their Sites, such as `steps=`.
        """
        concepts, image = SPACES[self.preset.space]
        if self.preset.image_vectors == "concepts":
            image = WITH_CONCEPTS
        return [
            (Site(f"blocks.{block}.{point}", **where), hook)
            for block in blocks
            for point, hook in ((image, self.on_image), (concepts, self.on_concepts))
        ]

    def on_image(self, activation: Tensor, hook: HookContext) -> None:
        """Take the image's vectors of a block, those of references and fillers behind it apart."""
        self._take("image", activation[:, : math.prod(hook.grid)].flatten(2), hook)

    on_image.read_only = True  # type: ignore[attr-defined]

    def on_concepts(self, activation: Tensor, hook: HookContext) -> None:
        """Take the concepts' vectors of a block, fillers behind them."""
        rows = activation.flatten(2)
        vectors = self.streams.merge(rows)
        if self.preset.slots is not None:
            last = max(at.stop for at in self.streams.rows.values())
            vectors = torch.cat([vectors, rows[:, last:]], 1)
        self._take("concepts", vectors, hook)

    on_concepts.read_only = True  # type: ignore[attr-defined]

    def _take(self, which: str, vectors: Tensor, hook: HookContext) -> None:
        self.waiting[which] = vectors
        if len(self.waiting) == 2:
            self.steps[hook.step], self.blocks[hook.layer()], self.grid = None, None, hook.grid
            self.sums.add(self.waiting["concepts"], self.waiting["image"], hook)
            self.waiting = {}

    def result(self) -> Tensor:
        """Maps with axes batch, (step), (block), concept, (frame), height, width."""
        return self.sums.result().unflatten(-1, self.grid)
