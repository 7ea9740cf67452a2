"""Video: frames with a slider, and gif files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from PIL import Image

from diffusion_lens.border import Number, public
from diffusion_lens.errors import FigureError
from diffusion_lens.showing.pictures import pictures
from diffusion_lens.viz.panels import Panels, backdrop, nothing
from diffusion_lens.viz.pictures import coloured, source
from diffusion_lens.viz.values import array, labels, limits


@public
def frames(
    frames: Any,
    *,
    captions: Sequence[Any] | None = None,
    title: str | None = None,
    note: str = "",
) -> go.Figure:
    """A video, or a map over the frames of one, with a slider over frames that opens in the middle.

    Args:
        frames: Images (a list, or an array with axes frame, height, width, 3), or a map with axes
            frame, height, width.
        captions: Labels of the slider; by default counted from 0.
        title: Above the figure.
        note: A sentence that says what is shown; below the title.

    Raises:
        FigureError: If these are no frames, or there are not as many captions.
    """
    drawn = _drawn(frames)
    shown = labels(range(len(drawn)) if captions is None else captions, len(drawn), name="captions")
    video = Panels.empty(1)
    video.add(0, nothing(), drawn[0].size)
    slides = [[backdrop(0, source(one), one.size)] for one in drawn]
    start = len(drawn) // 2
    video.figure.update_layout(images=slides[start])
    video.figure.frames = [
        go.Frame(name=str(number), layout={"images": slide}) for number, slide in enumerate(slides)
    ]
    video.slide(shown, "frame ", start=start)
    return video.finish(drawn[0], title=title, note=note)


@public
def gif(frames: Any, path: str | Path, *, fps: Number = 8.0) -> Path:
    """Write a video, or a map over the frames of one, as a gif file that repeats.

    Args:
        frames: As for `frames`.
        path: Where; `.gif`.
        fps: Frames per second.

    Returns:
        The path.

    Raises:
        FigureError: If these are no frames, or `fps` is not positive.
    """
    if fps <= 0:
        raise FigureError(f"fps={fps} is not positive")
    first, *others = _drawn(frames)
    written = Path(path).with_suffix(".gif")
    written.parent.mkdir(parents=True, exist_ok=True)
    first.save(written, save_all=True, append_images=others, duration=round(1000 / fps), loop=0)
    return written


def _drawn(given: Any) -> list[Image.Image]:
    """Frames as images; a map is coloured, on one scale for all frames."""
    if isinstance(given, np.ndarray | torch.Tensor) and given.ndim == 3:
        values = array(given, axes="frame height width", name="frames")
        ends = limits(values)
        return [coloured(one, ends) for one in values]
    return pictures(given)
