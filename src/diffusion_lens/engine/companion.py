"""What may run beside the main pass, as the engine sees it.

Concept streams are the one companion that ships; nothing below `concept_streams` names them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

from torch import nn

from diffusion_lens.architectures.spec import Attention, BlockSite
from diffusion_lens.engine.attention import AttentionHooks
from diffusion_lens.engine.handles import Handle
from diffusion_lens.engine.steps import StepTracker
from diffusion_lens.engine.taps import Tap
from diffusion_lens.hook_points.point import HookPoint


@runtime_checkable
class Companion(Protocol):
    """What runs beside the main pass and brings hook points of its own."""

    def tokens(self) -> Mapping[str, int]:
        """Length of each stream that it adds."""
        ...

    def points(self, denoiser: nn.Module, main: Mapping[str, HookPoint]) -> dict[str, HookPoint]:
        """Every hook point while it is there."""
        ...

    def start(self, tracker: StepTracker) -> SecondPass:
        """A pass for one session of hooks."""
        ...


@runtime_checkable
class SecondPass(Protocol):
    """The companion's own run through the blocks, for one session of hooks."""

    def plan(self, taps: Mapping[str, Sequence[Tap]]) -> bool:
        """Keep what somebody asks for; whether there is anything."""
        ...

    def listens(self, block: BlockSite | None) -> Callable[[], bool]:
        """Whether hooks on a block (None: outside of the blocks) may fire now."""
        ...

    def blocks(self) -> Sequence[BlockSite]:
        """Every block that needs hooks even where nobody reads it."""
        ...

    def module_of(self, block: BlockSite, module: nn.Module) -> nn.Module:
        """Where hooks on the block itself go."""
        ...

    def lengths(self, block: BlockSite) -> Mapping[str, int] | None:
        """Token counts while a block runs for the companion; None where it runs for the image."""
        ...

    def hooks(self, block: BlockSite, attention: Attention) -> Callable[..., AttentionHooks] | None:
        """The kind of hooks for an attention module that has a part in the pass."""
        ...

    def attach(self) -> Iterator[Handle]:
        """Follow the main pass; to be attached after every other hook."""
        ...
