"""Which shape explains a patch of pixels best."""

from functools import lru_cache

import numpy as np
from jaxtyping import Bool

from diffusion_lens.toys.shapes.render import signed_distance
from diffusion_lens.toys.shapes.world import FRUIT, RESOLUTION, SHAPES


@lru_cache(maxsize=1)
def _extents() -> dict[str, tuple[float, float, float, float, float]]:
    """Left, right, top, bottom and area of each shape of radius 1, measured on a large one."""
    extents = {}
    for shape in (*SHAPES, FRUIT):
        middle, radius = RESOLUTION / 2, RESOLUTION * 0.4
        drawn = signed_distance(shape, x=middle, y=middle, radius=radius) < 0
        rows, columns = np.nonzero(drawn)
        edges = (columns.min(), columns.max() + 1, rows.min(), rows.max() + 1)
        left, right, top, bottom = (float(edge - middle) / radius for edge in edges)
        extents[shape] = (left, right, top, bottom, float(drawn.sum()) / radius**2)
    return extents


def fit_shape(
    mask: Bool[np.ndarray, "height width"],
) -> dict[str, tuple[float, float, float, float]]:
    """How well each shape explains a patch.

    Args:
        mask: One patch without holes.

    Returns:
        Shape to its best IoU, the radius at which it has the patch's area, and the best x and y.
    """
    rows, columns = np.nonzero(mask)
    left, right, top, bottom = columns.min(), columns.max() + 1, rows.min(), rows.max() + 1
    fits = {}
    for shape, (a, b, c, d, area) in _extents().items():
        radius = float((right - left) / (b - a) + (bottom - top) / (d - c)) / 2
        x, y = (left + right - (a + b) * radius) / 2, (top + bottom - (c + d) * radius) / 2
        overlap = _overlap(mask, shape, x=x, y=y, radius=radius)
        fits[shape] = (overlap, float(np.sqrt(mask.sum() / area)), float(x), float(y), radius)
    promising = sorted(fits, key=lambda shape: -fits[shape][0])[:2]
    for shape in promising:
        _, own, x, y, radius = fits[shape]
        guesses = [
            (x + u, y + v, radius * scale)
            for scale in (0.93, 1.0, 1.07)
            for u in (-0.4, 0.0, 0.4)
            for v in (-0.4, 0.0, 0.4)
        ]
        best = max((_overlap(mask, shape, x=x, y=y, radius=r), x, y) for x, y, r in guesses)
        fits[shape] = (best[0], own, best[1], best[2], radius)
    return {shape: fit[:4] for shape, fit in fits.items()}


def _overlap(
    mask: Bool[np.ndarray, "height width"], shape: str, *, x: float, y: float, radius: float
) -> float:
    drawn = signed_distance(shape, x=x, y=y, radius=radius) < 0
    return float((drawn & mask).sum() / (drawn | mask).sum())
