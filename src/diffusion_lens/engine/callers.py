"""Who calls: whether it is the pipeline itself, and which pipeline is running."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

BETWEEN = (
    str(Path(__file__).parent),
    str(Path("torch", "utils", "_contextlib.py")),
    str(Path("jaxtyping", "_decorator.py")),
    "<@beartype",
)
"""Files of what stands between a method and its caller: this engine and decorators."""


def called_by_method_of(pipe: Any) -> bool:
    """Whether code of the pipeline's own class calls what is running, not a callback or a hook."""
    for frame in _frames():
        if any(part in frame.f_code.co_filename for part in BETWEEN):
            continue
        return _is_method_of(pipe, frame)
    return False


def running_pipeline() -> Any:
    """The innermost diffusers pipeline whose call is on the stack, or None."""
    diffusers = sys.modules.get("diffusers.pipelines.pipeline_utils")
    if diffusers is None:
        return None
    for frame in _frames():
        if frame.f_code.co_name == "__call__":
            found = frame.f_locals.get("self")
            if isinstance(found, diffusers.DiffusionPipeline):
                return found
    return None


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_method_of(pipe: Any, frame: FrameType) -> bool:
    if frame.f_locals.get("self") is not pipe:
        return False
    name = frame.f_code.co_name
    candidates = (kind.__dict__.get(name) for kind in type(pipe).__mro__)
    return any(
        getattr(inspect.unwrap(found), "__code__", None) is frame.f_code
        for found in candidates
        if callable(found)
    )
