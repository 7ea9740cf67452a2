"""Maps with many axes as rows of panels, each over the image that it belongs to."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL.Image import Image
from torch import Tensor

from diffusion_lens.errors import ResultError
from diffusion_lens.showing.one_line import counted

PLANE = ("height", "width")


def as_panels(maps: Tensor, axes: Sequence[str]) -> tuple[Tensor, list[dict[str, int]]]:
    """Flatten every axis but step, height and width.

    Args:
        maps: The maps.
        axes: Names of their axes.

    Returns:
        Axes (step), panel, height, width; and for each panel its index along each flattened axis.
    """
    order = ("batch", "frame", "block", "concept")  # an image before all of its maps
    spread = [axis for axis in order if axis in axes]
    steps = ["step"] if "step" in axes else []
    maps = maps.permute([list(axes).index(axis) for axis in (*steps, *spread, *PLANE)])
    first, last = len(steps), len(steps) + len(spread)
    indices = itertools.product(*map(range, maps.shape[first:last]))
    places = [dict(zip(spread, index, strict=True)) for index in indices]
    return maps.flatten(first, last - 1).float().cpu(), places


def panel_title(place: Mapping[str, int], names: Mapping[str, Sequence[object]]) -> str:
    """What a panel shows, such as `sky, block 3`; axes with one entry are left out.

    Args:
        place: Index along each axis.
        names: What the entries of each axis are called.
    """
    said = []
    for axis, index in place.items():
        if axis == "concept":
            said.append(str(names[axis][index]))
        elif len(names[axis]) > 1:
            said.append(f"{axis.replace('batch', 'image')} {names[axis][index]}")
    return ", ".join(said)


def background_of(shown: Any, frame: int | None, frames: int) -> Any:
    """The image behind a panel; of a video one of its frames, spread evenly over those of the maps.

    Args:
        shown: An image, or the frames of a video.
        frame: Which frame of the maps; None where they have none.
        frames: How many the maps have.
    """
    if _is_image(shown):
        return shown
    count = len(shown)
    if frame is None or frames == 1:
        return shown[count // 2]
    return shown[round(frame * (count - 1) / (frames - 1))]


def as_images(given: Any, batch: int) -> Sequence[Any]:
    """One image, or sequence of frames, for each entry of a batch.

    Args:
        given: As a user has it: one for all, or one for each.
        batch: How many there are.

    Raises:
        ResultError: If the number is another one.
    """
    images = [given] * batch if _is_image(given) else list(given)
    if len(images) != batch:
        raise ResultError(
            f"{counted(len(images), 'image')} for a batch of {batch}; give one, or one for each"
        )
    return images


def _is_image(given: Any) -> bool:
    return isinstance(given, Image) or (isinstance(given, np.ndarray) and given.ndim < 4)
