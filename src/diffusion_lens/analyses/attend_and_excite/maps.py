"""How strongly the image attends to each of some tokens, as a differentiable number.

Source: Chefer et al., Attend-and-Excite, arXiv 2301.13826, section 3; with head relevance, Park et
al., arXiv 2412.02237, section 5.3 and appendix F.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from diffusion_lens import HookContext
from diffusion_lens.authoring import as_factors
from diffusion_lens.errors import RunError, UnsupportedModelError, WordError
from diffusion_lens.interventions.pattern_gradient import Activations

SHARPNESS = 100.0
"""Factor on the mean attention before the softmax over tokens."""


def gaussian(size: int, sigma: float) -> Float[Tensor, " size"]:
    """A Gaussian's values around its middle, with sum 1."""
    at = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
    weights = torch.exp(-(at**2) / (2 * float(sigma) ** 2))
    return weights / weights.sum()


def blur(
    maps: Float[Tensor, "*batch height width"], sizes: tuple[int, int], sigmas: tuple[float, float]
) -> Float[Tensor, "*batch height width"]:
    """Maps after a Gaussian filter, reflected at the borders.

    Args:
        maps: The maps.
        sizes: Odd sizes of the filter.
        sigmas: Standard deviations in positions.
    """
    shape = maps.shape
    flat = maps.reshape(-1, 1, *shape[-2:])
    padded = functional.pad(flat, (sizes[1] // 2,) * 2 + (sizes[0] // 2,) * 2, mode="reflect")
    rows, columns = (gaussian(*one).to(maps) for one in zip(sizes, sigmas, strict=True))
    filtered = functional.conv2d(padded, (rows[:, None] * columns)[None, None])
    return filtered.reshape(shape)


def resized(
    maps: Float[Tensor, "token height width"], size: tuple[int, int]
) -> Float[Tensor, "token new_height new_width"]:
    """Maps at another size: bicubic, blurred before where they shrink."""
    here = (maps.shape[-2], maps.shape[-1])
    if here == size:
        return maps
    if here[0] > size[0] or here[1] > size[1]:
        ratios = [max(1, own // new) for own, new in zip(here, size, strict=True)]
        # `ratio + 1` is odd for U-Nets, whose sides are halved; a filter needs a middle.
        kernels = [ratio + 1 + ratio % 2 for ratio in ratios]
        sigmas = [0.3 * ((kernel - 1) / 2 - 1) + 0.8 for kernel in kernels]
        maps = blur(maps, (kernels[0], kernels[1]), (sigmas[0], sigmas[1]))
    return functional.interpolate(maps[None], size=size, mode="bicubic", align_corners=False)[0]


def grid_of(hook: HookContext) -> tuple[int, int]:
    """Height and width of the image tokens.

    Raises:
        UnsupportedModelError: For videos.
    """
    if len(hook.grid) != 2:
        raise UnsupportedModelError(
            f"maps of one image are needed, {hook.name} has the grid {hook.grid} of a video"
        )
    return hook.grid[0], hook.grid[1]


def mean_attention(seen: Activations, *, side: int | None) -> Float[Tensor, "token height width"]:
    """Mean over the heads of all blocks whose grid has a side.

    Args:
        seen: Patterns over the text, of one sample.
        side: Shorter side of the grid; None for those of every block, which must be of one size.

    Raises:
        RunError: If no block has it.
    """
    grids = [grid_of(hook) for _, hook in seen]
    chosen = [
        pattern[0].mT.unflatten(-1, grid)
        for (pattern, _), grid in zip(seen, grids, strict=True)
        if side is None or min(grid) == side
    ]
    if not chosen:
        raise RunError(
            f"no attention to the text has a grid of side {side}; there are the sides "
            f"{sorted({min(grid) for grid in grids})}"
        )
    return torch.cat(chosen).mean(0)


def relevant_attention(
    seen: Activations, factors: dict[tuple[int, int], float], *, side: int | None
) -> Float[Tensor, "token height width"]:
    """Mean over all heads of every resolution, each times its factor.

    Args:
        seen: Patterns over the text, of one sample.
        factors: Head relevance by (block, head).
        side: Shorter side of the grid to which maps are brought; None for the coarsest one.
    """
    grids = [grid_of(hook) for _, hook in seen]
    coarsest = min(grids)
    ratio = 1.0 if side is None else side / min(coarsest)
    size = (round(coarsest[0] * ratio), round(coarsest[1] * ratio))
    total: Tensor | None = None
    for (pattern, hook), grid in zip(seen, grids, strict=True):
        assert hook.block is not None
        assert hook.heads is not None
        weights = as_factors(tuple(factors[hook.block, head] for head in hook.heads), pattern)
        # Resizing is linear, so that the heads are summed first: one map to resize for each token.
        summed = torch.einsum("h,hqt->tq", weights, pattern[0]).unflatten(-1, grid)
        found = resized(summed, size)
        total = found if total is None else total + found
    assert total is not None
    return total / len(factors)


@dataclass(frozen=True)
class Columns:
    """Which text tokens compete in the softmax.

    Attributes:
        first: The first of them; 1 where the text begins with a start token.
        last: The one after the last; None for all.
    """

    first: int = 1
    last: int | None = None


def token_maxima(
    maps: Sequence[Float[Tensor, "token height width"]],
    tokens: Sequence[int],
    *,
    columns: Columns,
    smooth: float | None,
) -> Float[Tensor, " subject"]:
    """The largest attention that each token gets anywhere in the image, in [0, 1].

    Args:
        maps: Mean attention, for each of the tokens.
        tokens: The tokens.
        columns: Which tokens compete in the softmax of 100 times the maps.
        smooth: Standard deviation of a Gaussian of 3 x 3 positions that is put over the maps first;
            None for none.

    Raises:
        WordError: If a token is not among those that compete.
    """
    found = []
    for attention, token in zip(maps, tokens, strict=True):
        shares = (SHARPNESS * attention[columns.first : columns.last]).softmax(0)
        if not 0 <= token - columns.first < len(shares):
            raise WordError(
                f"token {token} has no share in the softmax, which is over the tokens "
                f"{columns.first} to {columns.first + len(shares) - 1} of the text stream: name "
                "a word of the prompt, or let others compete (competing=)"
            )
        chosen = shares[token - columns.first]
        if smooth is not None:
            chosen = blur(chosen, (3, 3), (smooth, smooth))
        found.append(chosen.max())
    return torch.stack(found)
