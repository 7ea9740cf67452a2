"""Images as markup, small and inside the page: how results show themselves in notebooks."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from PIL import Image

from diffusion_lens.errors import FigureError
from diffusion_lens.showing.pictures import jpeg_address, of_pipeline, png_address

SIDE = 224
"""Pixels of the longer side of a shown image."""
TINY = 128
"""Up to this side an image is shown with its pixels as they are."""
MOST = 8
"""How many samples are shown."""
LONGEST = 90
"""Characters of a caption."""


def gallery(images: Any, *, captions: Sequence[str] = (), line: str = "") -> str | None:
    """Markup of what a pipeline made; of a video its first, middle and last frame.

    Args:
        images: As for `of_pipeline`; None for none.
        captions: Under the images, as far as there are any.
        line: Above them.

    Returns:
        Markup that needs no network, or None where these are no images: notebooks then show the
        `repr`.
    """
    if images is None:
        return None
    try:
        samples = of_pipeline(images)
    except (FigureError, TypeError, ValueError):  # a look at a result never fails
        return None
    if not samples:
        return None
    shown = [
        _figure(frames, captions[number] if number < len(captions) else "")
        for number, frames in enumerate(samples[:MOST])
    ]
    more = f"<div>and {len(samples) - MOST} more</div>" if len(samples) > MOST else ""
    return (
        f"<div><code>{html.escape(line)}</code>"
        '<div style="display:flex;flex-wrap:wrap;gap:12px;margin-top:6px">'
        f"{''.join(shown)}</div>{more}</div>"
    )


def _figure(frames: Sequence[Image.Image], caption: str) -> str:
    said = html.escape(caption if len(caption) <= LONGEST else f"{caption[: LONGEST - 1]}…")
    places = sorted({0, len(frames) // 2, len(frames) - 1})
    images = "".join(_image(frames[place], said) for place in places)
    if len(frames) > 1:
        said = f"frames {', '.join(map(str, places))} of {len(frames)}. {said}"
    return (
        f'<figure style="margin:0;max-width:{len(places) * (SIDE + 4)}px">{images}'
        f'<figcaption style="font-size:12px">{said}</figcaption></figure>'
    )


def _image(image: Image.Image, said: str) -> str:
    tiny = max(image.size) <= TINY
    if not tiny:
        image = image.copy()
        image.thumbnail((SIDE, SIDE))
    times = SIDE / max(image.size)
    size = f'width="{round(image.width * times)}" height="{round(image.height * times)}"'
    style = "image-rendering:pixelated;" if tiny else ""
    address = png_address(image) if tiny else jpeg_address(image)
    return f'<img src="{address}" {size} alt="{said}" style="{style}margin-right:4px">'
