"""Letting a stream pass by a block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from diffusion_lens import HookedDiffusion
from diffusion_lens.border import public
from diffusion_lens.errors import RunError
from diffusion_lens.hook_points import HookContext, Site


@dataclass(frozen=True)
class _Remember:
    """Keeps what enters the block."""

    block: int
    kept: dict[tuple[str | None, str], Tensor] = field(repr=False)
    read_only = True

    def __call__(self, activation: Tensor, hook: HookContext) -> None:
        self.kept[hook.stream, hook.branch] = activation if hook.owned else activation.clone()


@dataclass(frozen=True)
class BypassBlock:
    """A hook that puts what entered a block in place of what leaves it."""

    block: int
    kept: dict[tuple[str | None, str], Tensor] = field(repr=False)

    def __call__(
        self, _activation: Float[Tensor, "batch pos d_model"], hook: HookContext
    ) -> Float[Tensor, "batch pos d_model"]:
        """What entered in this stream and branch."""
        return self.kept.pop((hook.stream, hook.branch))


@public
def bypass_block(
    model: HookedDiffusion,
    block: int,
    *,
    streams: Sequence[str] | None = None,
    steps: object = None,
    branch: str | None = None,
) -> list[tuple[Site, _Remember | BypassBlock]]:
    """Make the hooks that let streams pass by a block unchanged.

    A block skipped whole removes its direct effect and everything later blocks would have read from
    it. In a U-Net the residual of a transformer block lies inside a spatial transformer, whose
    projections still run.

    Args:
        model: The model, whose streams are looked up.
        block: Index of the block.
        streams: Which streams; by default all that live on after it.
        steps: At which steps.
        branch: In which guidance branch.

    Returns:
        (Site, hook) pairs for `fwd_hooks`.

    Raises:
        RunError: If a stream does not pass through that block, or none is named.
    """
    names = [f"blocks.{block}.{stream}.hook_resid_post" for stream in ("img", "txt")]
    alive = [name for name in names if name in model.points and not model.points[name].dead]
    found = tuple(name.split(".")[2] for name in alive)
    wanted = found if streams is None else tuple(dict.fromkeys(streams))
    if not wanted or not set(wanted) <= set(found):
        raise RunError(
            f"block {block} of {model.name} has the streams {found}, asked for {wanted}; the model "
            f"has {model.n_blocks} blocks"
        )
    kept: dict[tuple[str | None, str], Tensor] = {}
    pairs: list[tuple[Site, _Remember | BypassBlock]] = []
    for stream in wanted:
        before = Site(f"blocks.{block}.{stream}.hook_resid_pre", steps=steps, branch=branch)
        pairs.append((before, _Remember(block, kept)))
        after = Site(f"blocks.{block}.{stream}.hook_resid_post", steps=steps, branch=branch)
        pairs.append((after, BypassBlock(block, kept)))
    return pairs
