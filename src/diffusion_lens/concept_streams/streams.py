"""Concept streams of a model while they are open: their rows and their hook points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lens.architectures.spec import BlockSite
from diffusion_lens.concept_streams.concept_pass import ConceptInput, ConceptPass
from diffusion_lens.concept_streams.view import concept_view, find_concept_points
from diffusion_lens.engine.steps import StepTracker
from diffusion_lens.hook_points.point import HookPoint

Views = dict[BlockSite, BlockSite]


@dataclass(eq=False)
class ConceptStreams:
    """Which concepts ride along, and which rows of the stream `concept` are whose.

    Attributes:
        rows: For each concept, its rows along the `pos` axis of the stream. Ready-made embeddings
            are called by their number, `"0"`, `"1"`, ….
        given: What the concept tokens start from.
        attend: What they attend to.
        blocks: The blocks that have hook points for them.
        image_queries: Whether the image's queries over image and concepts have points as well.
    """

    rows: Mapping[str, slice]
    given: ConceptInput
    attend: tuple[str, ...]
    blocks: tuple[int, ...]
    image_queries: bool = False
    _found: tuple[object, Views, dict[str, HookPoint]] | None = field(default=None, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The concepts, in order of their rows."""
        return tuple(self.rows)

    def merge(self, value: Tensor, *, dim: int = 1) -> Tensor:
        """One entry for each concept: the mean over its rows.

        Args:
            value: A value of the stream, such as `attn.concept.hook_z`.
            dim: Its token axis.
        """
        parts = [
            value.narrow(dim, at.start, at.stop - at.start).mean(dim) for at in self.rows.values()
        ]
        return torch.stack(parts, dim)

    def tokens(self) -> dict[str, int]:
        """Length of the stream."""
        return {"concept": self.given.embeddings.shape[1]}

    def points(self, denoiser: nn.Module, main: Mapping[str, HookPoint]) -> dict[str, HookPoint]:
        """Every hook point while the streams are open.

        Args:
            denoiser: The denoiser.
            main: The hook points of the main pass.
        """
        if self._found is None or self._found[0] is not main:
            views = {block: concept_view(block, attend=self.attend) for block in carriers(main)}
            shown = {block: view for block, view in views.items() if block.index in self.blocks}
            added = find_concept_points(denoiser, shown, image_queries=self.image_queries)
            points = {**main, **added}
            self._found = (main, views, points)
        return self._found[2]

    def start(self, tracker: StepTracker) -> ConceptPass:
        """A pass for one session of hooks on `points`."""
        assert self._found is not None
        return ConceptPass(tracker, self.given, self._found[1])


def carriers(points: Mapping[str, HookPoint]) -> list[BlockSite]:
    """The blocks that can take concept tokens, in order of execution."""
    sources: list[Any] = [point.source for point in points.values()]
    blocks = dict.fromkeys(source.block for source in sources if hasattr(source, "block"))
    found = [block for block in blocks if block.spec.concepts is not None]
    return sorted(found, key=lambda block: block.index)
