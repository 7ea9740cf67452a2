"""A hook point: a named quantity of a model with named axes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Source = object
"""Where the engine reads a point; the classes are in `diffusion_lens.architectures.sources`."""


KEPT_KEYS = "kept"
"""In token counts: how many keys of an earlier evaluation come before the image's own."""


def along(axis: str, lengths: Mapping[str, int]) -> Mapping[str, int]:
    """Token count of each stream along an axis: keys of an earlier evaluation are the image's."""
    if axis != "key" or not lengths.get(KEPT_KEYS):
        return lengths
    return {**lengths, "img": lengths["img"] + lengths[KEPT_KEYS]}


@dataclass(frozen=True)
class HookPoint:
    """One quantity that can be read and replaced.

    Attributes:
        name: Its name, the same for the same quantity in every model family.
        axes: Axis names of the tensor that a hook sees, batch first.
        source: Where the engine finds it.
        module: The native path of the module that it is read at.
        block: Index of the block, or None outside the blocks.
        stream: `"img"`, `"txt"`, …, or None where there are several (patterns) or none.
        heads: Number of heads, where there is a head axis.
        sequences: For every token axis (`pos`, `query`, `key`) the streams along it, in order.
        sizes: Sizes known from the weights, by axis name.
        level: How often the latents were halved on the way here (U-Nets), for `grid`.
        skipped: How many tokens at the start of the stream are not here yet: words lie as much
            further in front.
        held: How many tokens of the stream are here, where others come by another argument; None
            where all are.
        dead: Why an edit here cannot change the output, or None.
        dead_queries: The same for the rows of text queries of scores and patterns.
    """

    name: str
    axes: tuple[str, ...]
    source: Source
    module: str
    block: int | None = None
    stream: str | None = None
    heads: int | None = None
    sequences: Mapping[str, tuple[str, ...]] = None  # type: ignore[assignment]
    sizes: Mapping[str, int] = None  # type: ignore[assignment]
    level: int = 0
    skipped: int = 0
    held: int | None = None
    dead: str | None = None
    dead_queries: str | None = None

    def __post_init__(self) -> None:
        """Replace the missing mappings by empty ones."""
        for field in ("sequences", "sizes"):
            if getattr(self, field) is None:
                object.__setattr__(self, field, {})

    @property
    def has_all_tokens(self) -> bool:
        """Whether the tokens here are all of the stream's."""
        return not self.skipped and self.held is None

    def places(self, found: Iterable[int]) -> tuple[int, ...]:
        """Where tokens of the stream lie here, those apart that are not here.

        Args:
            found: Their indices in the stream.
        """
        here = (at - self.skipped for at in found)
        return tuple(at for at in here if self.held is None or at < self.held)

    def shape(self, tokens: Mapping[str, int], *, batch: int) -> tuple[int | None, ...]:
        """Sizes of all axes, None where the weights and token counts do not tell.

        Args:
            tokens: Token count of each stream at this point's level.
            batch: Batch size that a hook sees.
        """

        def size(axis: str) -> int | None:
            if axis == "batch":
                return batch
            if axis in self.sequences and self.held is not None:
                return self.held
            if axis in self.sequences:
                lengths = along(axis, tokens)
                counts = [lengths.get(stream) for stream in self.sequences[axis]]
                return None if None in counts else sum(count for count in counts if count)
            return self.sizes.get(axis)

        return tuple(size(axis) for axis in self.axes)

    def elements(self, tokens: Mapping[str, int], *, batch: int) -> int | None:
        """Number of elements of one activation, or None where a size is unknown."""
        shape = self.shape(tokens, batch=batch)
        return None if None in shape else math.prod(size for size in shape if size is not None)


@dataclass(frozen=True)
class Absent:
    """A name that other blocks or families have, and why this one has not.

    Attributes:
        name: The name that does not exist here.
        reason: Why.
    """

    name: str
    reason: str
