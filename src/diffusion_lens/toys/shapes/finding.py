"""What a program sees in an image of the shapes world: its background and its objects."""

from collections import deque
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

from diffusion_lens.toys.shapes.fitting import fit_shape
from diffusion_lens.toys.shapes.render import DARK, LIGHT
from diffusion_lens.toys.shapes.world import BACKGROUNDS, COLOURS, FRUIT

BACKGROUND_REACH = 45.0
"""A pixel within this Euclidean distance of a background colour may be background."""

OBJECT_REACH = 40.0
"""A pixel farther than this from the image's own background colour belongs to an object."""

SMALLEST = 12
"""Patches of fewer pixels than this are specks, not objects."""

LEAST_FIT = 0.72
"""An object whose outline overlaps the best shape less than this (IoU) has no shape."""


@dataclass(frozen=True)
class Found:
    """An object found in an image.

    Args:
        mask: Its pixels, holes filled.
        colour: The nearest word of `COLOURS` for most of its pixels.
        texture: A word of `TEXTURES`.
        shape: A word of `SHAPES`, `FRUIT`, or None where nothing fits.
        fit: IoU with the best shape.
        radius: Radius at which the best shape has the object's area, in pixels.
        x: Centre of the best shape, in pixels from the left.
        y: Centre of the best shape, in pixels from the top.
    """

    mask: Bool[np.ndarray, "height width"]
    colour: str
    texture: str
    shape: str | None
    fit: float
    radius: float
    x: float
    y: float


def shades() -> Float[np.ndarray, "shade colour rgb"]:
    """Every colour as it is, as its stripes and as its dots.

    Returns:
        RGB, 0 to 255; colours in the order of `COLOURS`.
    """
    base = np.array(list(COLOURS.values()), np.float32)
    return np.stack([base, DARK * base, base + LIGHT * (255 - base)])


def find_background(
    image: UInt8[np.ndarray, "height width rgb"],
) -> tuple[str | None, Float[np.ndarray, "height width"]]:
    """The background's word and how far each pixel is from it.

    Args:
        image: RGB, 0 to 255.

    Returns:
        The word, None where less than a quarter of the image looks like any background; and each
        pixel's distance from the image's own background colour.
    """
    pixels = image.astype(np.float32)
    palette = np.array(list(BACKGROUNDS.values()), np.float32)
    distance = np.linalg.norm(pixels[:, :, None] - palette, axis=-1)
    near = (distance.argmin(-1)[..., None] == np.arange(len(palette))) & (
        distance < BACKGROUND_REACH
    )
    best = int(near.sum((0, 1)).argmax())
    if near[..., best].mean() < 0.25:
        return None, np.zeros(image.shape[:2], np.float32)
    own = np.median(pixels[near[..., best]], axis=0)
    return list(BACKGROUNDS)[best], np.linalg.norm(pixels - own, axis=-1)


def patches(mask: Bool[np.ndarray, "height width"]) -> list[Bool[np.ndarray, "height width"]]:
    """Connected parts of a mask (by edges and corners), the largest first.

    Args:
        mask: Pixels.

    Returns:
        One mask for each part.
    """
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    parts = []
    while left:
        queue, part = deque([left.pop()]), np.zeros_like(mask)
        while queue:
            y, x = queue.popleft()
            part[y, x] = True
            around = {(y + v, x + u) for v in (-1, 0, 1) for u in (-1, 0, 1)} & left
            left -= around
            queue.extend(around)
        parts.append(part)
    return sorted(parts, key=lambda part: -int(part.sum()))


def fill_holes(mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Add to a patch what it encloses.

    Args:
        mask: One connected patch.

    Returns:
        The patch without holes.
    """
    outside = np.pad(~mask, 1, constant_values=True)
    parts = patches(outside)
    open_parts = [part for part in parts if part[0, 0]]
    return ~open_parts[0][1:-1, 1:-1]


def _erode(mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    wide = np.pad(mask, 1)
    inner = mask & wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:]
    return inner if inner.sum() >= 6 else mask


def _sharpen(
    mask: Bool[np.ndarray, "height width"], distance: Float[np.ndarray, "height width"]
) -> Bool[np.ndarray, "height width"]:
    """Drop the rim that is more background than object, which would make small objects grow."""
    half = 0.5 * float(np.quantile(distance[_erode(mask)], 0.1))
    parts = patches(mask & (distance > max(OBJECT_REACH, half)))
    return fill_holes(parts[0]) if parts and parts[0].sum() >= SMALLEST else mask


def _paint(
    image: UInt8[np.ndarray, "height width rgb"], mask: Bool[np.ndarray, "height width"]
) -> tuple[str, str, float]:
    """Colour, texture and share of leaf green of one object."""
    pixels = image[_erode(mask)].astype(np.float32)
    distance = np.linalg.norm(pixels[:, None, None] - shades(), axis=-1)
    nearest = distance.reshape(len(pixels), -1).argmin(-1)
    shade, colour = np.divmod(nearest, len(COLOURS))
    votes = np.bincount(colour, minlength=len(COLOURS))
    winner = int(votes.argmax())
    dark, light = ((shade[colour == winner] == kind).mean() for kind in (1, 2))
    texture = "striped" if dark > 0.2 else "dotted" if light > 0.05 else "plain"
    return list(COLOURS)[winner], texture, float(votes[list(COLOURS).index("green")] / len(pixels))


def find_things(
    image: UInt8[np.ndarray, "height width rgb"],
) -> tuple[str | None, list[Found]]:
    """Find everything in an image.

    Objects that touch are found as one; an object cut by the image's edge rarely fits a shape.

    Args:
        image: RGB, 0 to 255, of the world's resolution.

    Returns:
        The background's word (None if there is no clear one) and the objects, the largest first.
    """
    background, distance = find_background(image)
    things = []
    for patch in patches(distance > OBJECT_REACH):
        if patch.sum() < SMALLEST:
            continue
        mask = _sharpen(fill_holes(patch), distance)
        colour, texture, green = _paint(image, mask)
        fits = fit_shape(mask)
        if colour != FRUIT or green < 0.04:
            fits.pop(FRUIT)
        shape = max(fits, key=lambda name: fits[name][0])
        fit, radius, x, y = fits[shape]
        kind = shape if fit >= LEAST_FIT else None
        things.append(Found(mask, colour, texture, kind, fit, radius, x, y))
    return background, things
