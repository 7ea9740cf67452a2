"""Where the rows of a batch attend to words of their own, and images blended by that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from diffusion_lens import HookContext, HookedDiffusion, Site
from diffusion_lens.authoring import as_tensor
from diffusion_lens.border import Fraction, Index, public
from diffusion_lens.errors import RunError, UnsupportedModelError

QUARTER = 2
"""How often latents were halved where the released code reads maps: 16 of 64 positions a side."""


@public(words=str | Sequence[str | Sequence[str]])
@dataclass(frozen=True)
class LocalBlend:
    """Outside of what words attend to, targets keep the source's latents.

    Attributes:
        words: A word, or several, for each row: the source's, then one entry for each target.
        threshold: Share of a map's maximum from which on a position belongs to the words.
        level: How often the latents were halved where maps are read; the nearest that the model
            has is taken.

    Source: the released code of arXiv 2208.01626; not in the paper.
    """

    words: Sequence[str | Sequence[str]]
    threshold: Fraction = 0.3
    level: Index = QUARTER


@dataclass
class WordMaps:
    """A hook that adds up, over steps, how each row of the batch attends to tokens of its own.

    Attributes:
        tokens: For each row the text tokens whose columns are added.
        total: For each row, the mean over heads and blocks; axes row, height, width.
    """

    tokens: Sequence[Sequence[int]]
    read_only = True
    sums: Tensor | None = field(default=None, repr=False)
    heads: int = 0
    step: int = -1
    steps: int = 0

    def __call__(self, pattern: Float[Tensor, "row head query token"], hook: HookContext) -> None:
        """Add this block's heads."""
        rows = [
            one.index_select(-1, as_tensor(tuple(some), one)).sum((0, -1))
            for one, some in zip(pattern, self.tokens, strict=True)
        ]
        found = torch.stack(rows).detach().float().unflatten(-1, hook.grid)
        if hook.step != self.step:
            self.step, self.steps, self.heads = hook.step, self.steps + 1, 0
        self.heads += pattern.shape[1]
        self.sums = found if self.sums is None else self.sums + found

    def total(self) -> Float[Tensor, "row height width"]:
        """Mean over heads, sum over the steps so far."""
        assert self.sums is not None
        return self.sums / self.heads

    def mean(self) -> Float[Tensor, "row height width"]:
        """Mean over heads and steps."""
        return self.total() / self.steps


def map_sites(model: HookedDiffusion, level: int = QUARTER) -> list[Site]:
    """Where maps are read: the patterns over the text at the level nearest to the wanted one."""
    sites = model.text_pattern_sites()
    levels = {str(site.name): model.points[str(site.name)].level for site in sites}
    nearest = min(set(levels.values()), key=lambda one: (abs(one - level), one))
    return [site.with_(branch="cond") for site in sites if levels[str(site.name)] == nearest]


def blend_mask(
    maps: Float[Tensor, "row height width"], size: tuple[int, int], *, threshold: float
) -> Bool[Tensor, "target latent_height latent_width"]:
    """Where targets may differ from the source.

    Maps are max-pooled over 3 x 3 positions, enlarged to the latents, and cut at a share of their
    own maximum; a target's mask is its own joined with the source's.

    Args:
        maps: Row 0 is the source's.
        size: Height and width of the latents.
        threshold: The share.
    """
    pooled = functional.max_pool2d(maps[:, None], 3, stride=1, padding=1)
    large = functional.interpolate(pooled, size=size)[:, 0]
    inside = large > threshold * large.amax((1, 2), keepdim=True)
    return inside[:1] | inside[1:]


@dataclass(frozen=True)
class BlendLatents:
    """A pipeline's step callback that keeps the source's latents outside the words' mask."""

    maps: WordMaps
    threshold: float
    theirs: Any = None

    def __call__(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict:
        """Latents as they were inside the mask, the source's outside."""
        changed = {} if self.theirs is None else self.theirs(pipe, step, timestep, tensors) or {}
        latents = changed.get("latents", tensors["latents"])
        return {**changed, "latents": self.blend(latents)}

    def blend(self, latents: Tensor) -> Tensor:
        """The source's latents in every row, but inside the row's mask.

        Raises:
            UnsupportedModelError: For videos.
        """
        maps = self.maps.total()
        if maps.ndim != 3 or latents.ndim not in (3, 4):
            raise UnsupportedModelError(
                "local_blend works on images; this model makes videos. Leave local_blend out"
            )
        packed = latents.ndim == 3
        height, width = maps.shape[-2:] if packed else latents.shape[-2:]
        mask = blend_mask(maps, (height, width), threshold=self.threshold).to(latents.device)
        mask = mask.flatten(1)[..., None] if packed else mask[:, None]
        return torch.cat([latents[:1], torch.where(mask, latents[1:], latents[:1])])


def blend_words(blend: LocalBlend, rows: int) -> list[tuple[str, ...]]:
    """The words of each row.

    Raises:
        RunError: If there are not as many entries as rows.
    """
    if isinstance(blend.words, str) or len(blend.words) != rows:
        raise RunError(
            f"LocalBlend needs words for the source and for each target, {rows} entries, such as "
            f'words=("cat", "dog"); got {blend.words!r}'
        )
    return [(one,) if isinstance(one, str) else tuple(one) for one in blend.words]
