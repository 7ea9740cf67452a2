"""The denoiser under test: running it, recording it, and which of its points stand for all."""

from __future__ import annotations

import contextlib
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lens.architectures.catalogue import find_blocks, find_refiners
from diffusion_lens.architectures.spec import BlockSite, DenoiserSpec
from diffusion_lens.errors import HookNeverFiredError, UnsupportedModelError
from diffusion_lens.hook_points import HookContext, HookPoint, match_names
from diffusion_lens.hooked_diffusion import HookedDiffusion
from diffusion_lens.testing.tolerances import TOLERANCES, Tolerance

Hook = tuple[Any, Callable[[Tensor, HookContext], Tensor | None]]


@dataclass
class Recorder:
    """A read-only hook that keeps a copy of what it sees, by (name, branch).

    Attributes:
        seen: Every value of a point and branch, in the order in which it fired.
    """

    seen: dict[tuple[str, str], list[Tensor]] = field(default_factory=dict, repr=False)
    read_only = True

    def __call__(self, activation: Tensor, hook: HookContext) -> None:
        """Record one activation."""
        self.seen.setdefault((hook.name, hook.branch), []).append(activation.detach().clone())

    def values(self) -> dict[str, Tensor]:
        """The value of each point in a run without guidance branches."""
        return {name: found[0] for (name, _), found in self.seen.items()}


class Subject:
    """A denoiser, the arguments of one call, and what the clauses share.

    Attributes:
        denoiser: The bare denoiser.
        inputs: The keyword arguments of the call.
        model: The denoiser, wrapped.
        points: Every hook point by name, the model's own dict.
        blocks: Its transformer blocks, behind those that refine its streams.
        tolerance: What rounding may do in its precision.
        sample: The points that get forwards of their own.
        plain: The output before anything was wrapped.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        inputs: Mapping[str, Any],
        *,
        points: Any = None,
        spec: DenoiserSpec | None = None,
    ) -> None:
        """Run the denoiser once, unwrapped, and choose the sample."""
        self.denoiser = denoiser
        self.inputs = dict(inputs)
        self.torch_hooks_before = count_torch_hooks(denoiser)
        self.plain = self.run()
        self.model = HookedDiffusion(denoiser, spec=spec)
        spec = self.model.spec
        self.blocks: list[BlockSite] = [
            *find_refiners(denoiser, spec),
            *find_blocks(denoiser, spec),
        ]
        if self.model.dtype not in TOLERANCES:
            known = ", ".join(str(dtype) for dtype in TOLERANCES)
            raise UnsupportedModelError(
                f"the contract cannot be checked in {self.model.dtype}, only in {known}; "
                "cast the denoiser first"
            )
        self.tolerance: Tolerance = TOLERANCES[self.model.dtype]
        self.points: dict[str, HookPoint] = self.model.points
        names = list(self.points)
        self.sample = (
            self._one_of_every_kind() if points is None else set(match_names(points, names))
        )

    def run(
        self,
        hooks: Sequence[Hook] = (),
        *,
        branches: Sequence[str] | None = None,
        changes: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """One evaluation.

        Args:
            hooks: Hooks to put on.
            branches: What the batch holds.
            changes: Arguments in place of those of the call.

        Returns:
            The prediction.
        """
        hooked = self.model.hooks(hooks, branches=branches) if hooks else contextlib.nullcontext()
        # A model may change its arguments in place, so each run has its own.
        with torch.no_grad(), hooked:
            output = self.denoiser(**_cloned(self.inputs | dict(changes or {})))
        if isinstance(output, Tensor):
            return output
        whole = getattr(output, "to_tuple", lambda: (output.sample,))
        parts = output if isinstance(output, tuple) else whole()
        found = torch.stack(parts[0]) if isinstance(parts[0], list) else parts[0]
        beside = [one for one in parts[1:] if isinstance(one, Tensor)]
        if not beside:
            return found
        return torch.cat([one.flatten(1) for one in (found, *beside)], 1)  # sound beside a video

    def record(
        self,
        names: Iterable[str],
        hooks: Sequence[Hook] = (),
        *,
        branches: Sequence[str] | None = None,
        changes: Mapping[str, Any] | None = None,
    ) -> Recorder:
        """One evaluation in which some points are recorded, after the edits of `hooks`."""
        recorder, wanted = Recorder(), set(names)
        # A point that stays silent is a finding of clause 2, which looks at what was recorded.
        with contextlib.suppress(HookNeverFiredError):
            self.run([*hooks, (wanted.__contains__, recorder)], branches=branches, changes=changes)
        return recorder

    def _one_of_every_kind(self) -> set[str]:
        """The first point of each kind in each kind of block.

        A kind of block is its class together with the names and dead points that it has. The last
        block is a kind of its own: what is thrown away there need not be known to be.
        """
        in_block: dict[str, list[HookPoint]] = {}
        for point in self.points.values():
            if (prefix := prefix_of(point)) is not None:
                in_block.setdefault(prefix, []).append(point)
        blocks = {block.prefix: block for block in self.blocks}
        kinds: dict[object, str] = {}
        for point in self.points.values():
            kind: object = re.sub(r"\d+", "*", point.name)
            if (prefix := prefix_of(point)) is not None:
                beside, block = in_block[prefix], blocks[prefix]
                states = tuple((suffix(one), one.dead, one.dead_queries) for one in beside)
                last = block is self.blocks[-1]
                module = self.denoiser.get_submodule(block.path)
                kind = (type(module), block.refines, states, last, suffix(point))
            kinds.setdefault(kind, point.name)
        return set(kinds.values())


def suffix(point: HookPoint) -> str:
    """A point's name after its block."""
    prefix = prefix_of(point)
    return point.name if prefix is None else point.name.removeprefix(f"{prefix}.")


def prefix_of(point: HookPoint) -> str | None:
    """What the names of a point's block begin with; None outside the blocks."""
    block = getattr(point.source, "block", None)
    return None if block is None else block.prefix


def disturbed(value: Any, name: str) -> Any:
    """An argument of the denoiser with noise added: a tensor, or one for each sample."""
    if isinstance(value, list):
        return [disturbed(one, f"{name}.{place}") for place, one in enumerate(value)]
    return value + noise_like(value, name)


def noise_like(value: Tensor, name: str) -> Tensor:
    """Random numbers of the size of a value's own spread, the same for the same name."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    drawn = torch.randn(value.shape, generator=generator).to(value.device)
    finite = value[value.isfinite()].float()
    spread = finite.std().clamp_min(0.1) if finite.numel() > 1 else 1.0
    return (drawn * spread).to(value.dtype)


def count_torch_hooks(denoiser: nn.Module) -> int:
    """How many torch hooks are attached to a module and everything in it."""
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in denoiser.modules()
    )


def _cloned(value: Any) -> Any:
    """A copy with tensors of its own."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _cloned(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_cloned(inner) for inner in value)
    return value
