"""From a scene to its image and its exact masks."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

from diffusion_lens.toys.shapes.world import BACKGROUNDS, COLOURS, FRUIT, RESOLUTION, Scene, Thing

DARK = 0.45
"""A stripe's colour is the object's colour times this."""

LIGHT = 0.55
"""A dot's colour lies this far from the object's colour towards white."""

COLOUR_JITTER = 2.0
"""Standard deviation of each object's and background's colour, in levels of 255."""

_ROWS, _COLUMNS = np.mgrid[0:RESOLUTION, 0:RESOLUTION].astype(np.float32) + 0.5


@dataclass(frozen=True)
class Render:
    """An image with everything that is known about each pixel.

    Args:
        image: RGB, 0 to 255.
        things: One mask per object of the scene, in the scene's order; they never overlap.
        leaf: The fruit's green leaf (part of its object's mask), all False without a fruit.
    """

    image: UInt8[np.ndarray, "height width rgb"]
    things: Bool[np.ndarray, "thing height width"]
    leaf: Bool[np.ndarray, "height width"]

    @property
    def background(self) -> Bool[np.ndarray, "height width"]:
        """True where no object is."""
        return np.logical_not(self.things.any(axis=0))


def signed_distance(
    shape: str, *, x: float, y: float, radius: float
) -> Float[np.ndarray, "height width"]:
    """Distance of each pixel centre to a shape's outline, negative inside.

    Exact for the circle and a close bound for the others, which is all that antialiasing needs.

    Args:
        shape: A word of `SHAPES`, or `FRUIT`.
        x: Centre of the shape in pixels from the left.
        y: Centre of the shape in pixels from the top.
        radius: Half of its extent in pixels.

    Returns:
        The distance in pixels.

    Raises:
        ValueError: If no such shape exists.
    """
    u, v = _COLUMNS - x, _ROWS - y
    if shape == "circle":
        return np.hypot(u, v) - 0.98 * radius
    if shape == "square":
        return np.maximum(abs(u), abs(v)) - 0.88 * radius
    if shape == "triangle":
        foot = v - 0.75 * radius
        return np.maximum(foot, 0.87 * abs(u) - 0.49 * (v + 1.02 * radius))
    if shape == "cross":
        arm = 0.38 * radius
        return np.minimum(
            np.maximum(abs(u) - radius, abs(v) - arm), np.maximum(abs(u) - arm, abs(v) - radius)
        )
    if shape == FRUIT:
        disc = np.hypot(u, v - 0.22 * radius) - 0.78 * radius
        return np.minimum(disc, _leaf_distance(u, v, radius))
    raise ValueError(
        f"no shape {shape!r}; the world has circle, square, triangle, cross and orange"
    )


def _leaf_distance(
    u: Float[np.ndarray, "height width"], v: Float[np.ndarray, "height width"], radius: float
) -> Float[np.ndarray, "height width"]:
    """Distance to an ellipse that leans to the right above the fruit's disc."""
    u, v = u - 0.38 * radius, v + 0.72 * radius
    along, across = 0.87 * u - 0.5 * v, 0.5 * u + 0.87 * v
    return 0.3 * radius * (np.hypot(along / (0.56 * radius), across / (0.3 * radius)) - 1)


def thing_mask(thing: Thing) -> Bool[np.ndarray, "height width"]:
    """Pixels that belong to an object: those of which it covers more than half.

    Args:
        thing: The object.

    Returns:
        Its mask.

    Raises:
        ValueError: If its shape does not exist.
    """
    return signed_distance(thing.shape, x=thing.x, y=thing.y, radius=thing.radius) < 0


def _texture(
    texture: str, colour: Float[np.ndarray, " rgb"]
) -> Float[np.ndarray, "height width rgb"]:
    """The colour of each pixel; textures are fixed to the picture, not to the object."""
    if texture == "striped":
        marked, other = (_ROWS // 2).astype(int) % 2 == 0, DARK * colour
    elif texture == "dotted":
        rows, columns = (_ROWS // 2).astype(int) % 2, (_COLUMNS // 2).astype(int) % 2
        marked, other = (rows == 0) & (columns == 0), colour + LIGHT * (255 - colour)
    else:
        marked, other = np.zeros_like(_ROWS, dtype=bool), colour
    return np.where(marked[..., None], other, colour).astype(np.float32)


def render(scene: Scene, *, rng: np.random.Generator | None = None) -> Render:
    """Draw a scene.

    Args:
        scene: What to draw.
        rng: Source of a slight jitter of the colours. None draws the exact palette.

    Returns:
        The image and its masks.

    Raises:
        ValueError: If the scene names a shape that does not exist.
    """

    def tint(colour: tuple[int, int, int]) -> Float[np.ndarray, " rgb"]:
        shift = 0.0 if rng is None else rng.normal(0, COLOUR_JITTER, 3)
        return np.asarray(colour, np.float32) + np.asarray(shift, np.float32)

    image = np.ones((RESOLUTION, RESOLUTION, 3), np.float32) * tint(BACKGROUNDS[scene.background])
    masks, leaf = [], np.zeros((RESOLUTION, RESOLUTION), bool)
    for thing in scene.things:
        distance = signed_distance(thing.shape, x=thing.x, y=thing.y, radius=thing.radius)
        paint = _texture(thing.texture, tint(thing.paint or COLOURS[thing.colour]))
        if thing.shape == FRUIT:
            green = _leaf_distance(_COLUMNS - thing.x, _ROWS - thing.y, thing.radius)
            cover = np.clip(0.5 - green, 0, 1)[..., None]
            paint = paint * (1 - cover) + tint(COLOURS["green"]) * cover
            leaf |= (green < 0) & (distance < 0)
        cover = np.clip(0.5 - distance, 0, 1)[..., None]
        image = image * (1 - cover) + paint * cover
        masks.append(distance < 0)
    return Render(np.clip(image.round(), 0, 255).astype(np.uint8), np.stack(masks), leaf)


def render_words(scene: Scene) -> dict[str, Bool[np.ndarray, "height width"]]:
    """Exact mask of each word that a full caption of the scene would contain.

    A colour, shape, texture or size word owns its objects' pixels, a background word and the word
    "background" own the rest. Relation words own nothing and are left out.

    Args:
        scene: The scene.

    Returns:
        Word to mask; a word that two objects share owns both.

    Raises:
        ValueError: If the scene names a shape that does not exist.
    """
    drawn = render(scene)
    masks = {scene.background: drawn.background, "background": drawn.background}
    for thing, mask in zip(scene.things, drawn.things, strict=True):
        colour = {thing.colour} if thing.paint is None else set()
        for word in colour | {thing.shape, thing.texture, thing.size} - {"medium"}:
            masks[word] = masks.get(word, np.zeros_like(mask)) | mask
    return masks
