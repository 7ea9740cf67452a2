"""Which known family a denoiser that nobody described is built like."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from diffusion_lens.architectures.spec import DenoiserSpec
from diffusion_lens.architectures.validate import missing_parts, named_parts


@dataclass(frozen=True)
class Relative:
    """A family whose description fits part of a denoiser.

    Attributes:
        spec: The family.
        block: Class of the denoiser's block.
        like: Class of the family's block that it was compared with.
        found: How many of the modules and arguments that the description names it has.
        named: How many it names.
    """

    spec: DenoiserSpec
    block: str
    like: str
    found: int
    named: int

    def __str__(self) -> str:
        """One clause."""
        return (
            f"{self.spec.family} ({self.block} has {self.found} of the {self.named} parts that the "
            f"description of {self.like} names)"
        )


def closest_relative(denoiser: nn.Module, known: Iterable[DenoiserSpec]) -> Relative | None:
    """The family whose blocks are built most like some block of a denoiser; None where none is."""
    blocks = _block_like(denoiser)
    found = [
        relative
        for spec in known
        for like, describe in spec.blocks.items()
        for block in blocks
        if (relative := _compared(spec, like, describe, block)) is not None
    ]
    best = max(found, key=lambda one: (one.found / one.named, one.named), default=None)
    return best if best is not None and best.found > best.named / 2 else None


def _block_like(denoiser: nn.Module) -> list[nn.Module]:
    """One module of each class that stands in a list."""
    lists = [one for one in denoiser.modules() if isinstance(one, nn.ModuleList)]
    return list({type(block): block for one in lists for block in one}.values())


def _compared(spec: DenoiserSpec, like: str, describe: object, block: nn.Module) -> Relative | None:
    try:
        named = list(named_parts(describe(block)))  # type: ignore[operator]
    except (AttributeError, TypeError, KeyError, IndexError, ValueError):
        return None  # it asks for something that this block does not have
    wrong = len(list(missing_parts(block, named)))
    kind = type(block).__name__
    return Relative(spec, kind, like, len(named) - wrong, len(named)) if named else None
