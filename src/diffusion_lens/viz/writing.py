"""Figures as files."""

from __future__ import annotations

from pathlib import Path

import plotly.graph_objects as go

from diffusion_lens.border import public
from diffusion_lens.errors import FigureError

PICTURES = (".png", ".svg", ".pdf", ".jpg", ".webp")


@public
def write(figure: go.Figure, path: str | Path) -> Path:
    """Write a figure as a page that needs no network, or as a picture.

    Args:
        figure: The figure.
        path: Where; its ending says what: `.html`, or `.png`, `.svg`, `.pdf`, `.jpg`, `.webp`.

    Returns:
        The path.

    Raises:
        FigureError: If the ending is none of these, or the programs that draw pictures are missing.
    """
    written = Path(path)
    written.parent.mkdir(parents=True, exist_ok=True)
    if written.suffix == ".html":
        figure.write_html(written, include_plotlyjs=True, auto_play=False)
    elif written.suffix in PICTURES:
        try:
            figure.write_image(written)
        except (ImportError, ValueError, RuntimeError) as error:
            raise FigureError(
                f"cannot draw {written.name}: {_first_line(error)}. Pictures need kaleido (pip "
                "install 'diffusion-lens[png]') and Chrome or Chromium; or write .html."
            ) from error
    else:
        raise FigureError(
            f"{written.name!r} ends in {written.suffix!r}; figures are written as .html or as "
            f"{', '.join(PICTURES)}"
        )
    return written


def _first_line(error: Exception) -> str:
    """What is wrong, without the advice that follows it."""
    said = str(error.args[0] if error.args else error)
    return next((line for line in said.splitlines() if line.strip()), repr(error)).rstrip(" .,")
