"""What a hook is told about the value it sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion_lens.hook_points.point import HookPoint


@runtime_checkable
class Evaluation(Protocol):
    """One evaluation of the denoiser, as the engine knows it."""

    step: int

    def timestep(self) -> float:
        """The scheduler's timestep."""
        ...

    def timestep_known(self) -> float | Tensor:
        """The same without waiting for the device: a tensor where it does not tell at once."""
        ...

    def sigma(self) -> float:
        """The noise level in the scheduler's own units."""
        ...

    def grid(self, level: int) -> tuple[int, ...]:
        """Token grid of the image at a resolution level."""
        ...

    def words(self, branch: str) -> Mapping[str, tuple[int, ...]]:
        """Token indices of every word of the branch's prompts."""
        ...


@dataclass(frozen=True)
class HookContext:
    """Where and when a hook fires.

    Attributes:
        name: The hook point's name.
        block: Index of the block, or None outside the blocks.
        stream: The stream the value belongs to, or None for patterns.
        axes: Axis names of the activation, batch first.
        step: Steps of the scheduler so far, counted from 0; never the timestep. Evaluations of one
            step share it, such as the two of Flux with true guidance.
        branch: Guidance branch, `"cond"`, `"uncond"`, …; `"guided"` after guidance.
        heads: Indices of the heads along the head axis as the hook sees it, or None.
        streams: For each stream, where it lies along the token axis (`key` for patterns, with
            `queries` for the other one), counted in what the hook sees.
        queries: The same along the query axis of a pattern; empty elsewhere.
        part: What the Site selects, as (dimension, index) pairs of the whole activation; empty for
            all of it.
        whole: Full length of each axis that a Site can select from, by axis name.
        owned: Whether the activation belongs to the hook alone, so that keeping it needs no copy.

    `timestep`, `sigma`, `grid` and `words` are worked out when they are read. On an accelerator
    Flux's `grid` waits for the device once in a run; the first two do so at each reading for a
    denoiser called by hand: read them outside hot loops there.
    """

    name: str
    block: int | None
    stream: str | None
    axes: tuple[str, ...]
    step: int
    branch: str
    heads: tuple[int, ...] | None = None
    streams: Mapping[str, slice | tuple[int, ...]] = field(default_factory=dict)
    queries: Mapping[str, slice | tuple[int, ...]] = field(default_factory=dict)
    part: tuple[tuple[int, slice | tuple[int, ...]], ...] = ()
    whole: Mapping[str, int] = field(default_factory=dict)
    owned: bool = False
    point: HookPoint | None = field(default=None, repr=False)
    evaluation: Evaluation | None = field(default=None, repr=False)

    def layer(self) -> int:
        """Index of the block, as TransformerLens calls it.

        Raises:
            ValueError: Outside the blocks.
        """
        if self.block is None:
            raise ValueError(f"{self.name} lies outside the blocks and has no layer")
        return self.block

    def axis(self, name: str) -> int:
        """Dimension of a named axis.

        Raises:
            ValueError: If the activation has no such axis; the message lists those it has.
        """
        if name not in self.axes:
            raise ValueError(f"{self.name} has no axis {name!r}, its axes are {self.axes}")
        return self.axes.index(name)

    @property
    def timestep(self) -> float:
        """The scheduler's timestep of this evaluation (PNDM repeats one, Heun uses one twice)."""
        return self._evaluation().timestep()

    @property
    def sigma(self) -> float:
        """The noise level in the scheduler's own units."""
        return self._evaluation().sigma()

    @property
    def grid(self) -> tuple[int, ...]:
        """(height, width) or (frames, height, width) of the image tokens here."""
        return self._evaluation().grid(self.point.level if self.point is not None else 0)

    @property
    def words(self) -> Mapping[str, tuple[int, ...]]:
        """Text-stream token indices of every word of this branch's prompt."""
        found = self._evaluation().words(self.branch)
        if self.point is None or self.point.has_all_tokens:
            return found
        return {word: self.point.places(lie) for word, lie in found.items()}

    def _evaluation(self) -> Any:
        if self.evaluation is None:
            raise ValueError(f"{self.name}: this context belongs to no running denoiser")
        return self.evaluation
