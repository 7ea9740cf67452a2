"""Numbers and labels of users, made safe for a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from diffusion_lens.errors import FigureError
from diffusion_lens.showing.one_line import counted

MARKUP = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;", "\n": " "})
"""Plotly reads tags, entities and, where MathJax is loaded, dollars in every text it draws."""


def plain(text: object) -> str:
    """A text that plotly draws as it is written."""
    return str(text).translate(MARKUP)


def array(values: Any, *, axes: str, name: str = "values") -> np.ndarray:
    """Numbers as a float array.

    Args:
        values: A tensor, an array or nested sequences.
        axes: Names of the axes it must have, separated by spaces.
        name: What the message calls it.

    Raises:
        FigureError: If they are no numbers, have other axes, or there are none.
    """
    wanted = axes.split()
    try:
        if isinstance(values, torch.Tensor):
            found = values.detach().to("cpu", torch.float32).numpy()
        else:
            found = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise FigureError(f"{name} must be numbers with axes {axes}: {error}") from error
    if found.ndim != len(wanted) or not found.size:
        raise FigureError(
            f"{name} must have the axes {axes}, none of them empty; its shape is {found.shape}"
        )
    return found


def labels(given: Sequence[Any], count: int, *, name: str) -> list[str]:
    """Labels as plotly draws them.

    Raises:
        FigureError: If there are not `count` of them.
    """
    if len(given) != count:
        raise FigureError(
            f"{name} has {counted(len(given), 'label')} for {counted(count, 'value')}"
        )
    return [plain(label) for label in given]


def limits(values: np.ndarray, low: float | None = None, high: float | None = None) -> list[float]:
    """Ends of a colour scale: what is given, else the smallest and largest finite value."""
    finite = values[np.isfinite(values)]
    ends = [float(finite.min()), float(finite.max())] if finite.size else [0.0, 1.0]
    ends = [end if given is None else given for end, given in zip(ends, (low, high), strict=True)]
    return ends if ends[0] != ends[1] else [ends[0], ends[0] + 1e-6]
