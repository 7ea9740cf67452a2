"""Who calls: whether it is the pipeline itself, and which pipeline is running."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from diffusion_lens.engine.modular import is_block, is_modular

BETWEEN = (
    str(Path(__file__).parents[1]),
    str(Path("torch", "utils", "_contextlib.py")),
    str(Path("jaxtyping", "_decorator.py")),
    "<@beartype",
)
"""Files of what stands between a method and the pipeline that calls it: ours, decorators."""


class Running(NamedTuple):
    """A pipeline in the midst of one of its methods, or of one of its blocks.

    Attributes:
        pipe: The pipeline.
        method: The method's name, or the block's class.
    """

    pipe: Any
    method: str


def called_by_method_of(pipe: Any) -> bool:
    """Whether the pipeline's own code calls what is running, not a callback or a hook."""
    # Functions that no pipeline owns (`retrieve_timesteps`) stand between as well.
    between = (*BETWEEN, *getattr(sys.modules.get("diffusers"), "__path__", ()))
    # Blocks of modular pipelines may be anybody's, and there are no callbacks.
    anything = is_modular(pipe)
    for frame in _frames():
        if _is_method_of(pipe, frame):
            return True
        if anything:
            continue
        if not any(part in frame.f_code.co_filename for part in between):
            return False
    return False


def running_pipeline() -> Running | None:
    """The innermost diffusers pipeline of which a method or a block is on the stack."""
    diffusers = sys.modules.get("diffusers.pipelines.pipeline_utils")
    if diffusers is None:
        return None
    for frame in _frames():
        found = frame.f_locals.get("self")
        if isinstance(found, diffusers.DiffusionPipeline) and _is_method_of(found, frame):
            return Running(found, frame.f_code.co_name)
        if is_block(found):
            several = (value for value in frame.f_locals.values() if is_modular(value))
            pipe = next(several, None)
            if pipe is not None:
                return Running(pipe, type(found).__name__)
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
