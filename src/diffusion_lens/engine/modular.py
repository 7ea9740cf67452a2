"""Modular pipelines of diffusers: their blocks, what a call asks for, which parts they need.

A modular pipeline is blocks that hand a state on to each other. Its `__call__` names no argument:
what it takes is what its blocks take, and what runs the denoiser are blocks, not its own methods.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from diffusion_lens.engine.denoisers import DENOISERS, denoisers_of
from diffusion_lens.errors import UnsupportedModelError, listing

STATE = "state"
"""The argument of a call that brings what an earlier call left."""


def is_modular(pipe: Any) -> bool:
    """Whether this is a modular pipeline."""
    return _is_a(pipe, "ModularPipeline")


def is_block(value: Any) -> bool:
    """Whether this is a block of modular pipelines."""
    return _is_a(value, "ModularPipelineBlocks")


def _is_a(value: Any, kind: str) -> bool:
    known = sys.modules.get("diffusers.modular_pipelines.modular_pipeline")
    return known is not None and isinstance(value, getattr(known, kind))


def blocks_of(pipe: Any) -> Iterator[Any]:
    """Every block of a modular pipeline, those with blocks inside first."""
    waiting = [pipe._blocks] if is_modular(pipe) else []
    while waiting:
        block = waiting.pop(0)
        yield block
        waiting += list(block.sub_blocks.values())


def loops_of(pipe: Any) -> list[Any]:
    """The blocks that run over the timesteps."""
    return [block for block in blocks_of(pipe) if _is_a(block, "LoopSequentialPipelineBlocks")]


def encoders_of(pipe: Any) -> list[Any]:
    """The blocks that make embeddings of prompts."""
    return [
        block
        for block in blocks_of(pipe)
        if not block.sub_blocks
        and "prompt" in {one.name for one in block.inputs}
        and "prompt_embeds" in {one.name for one in block.intermediate_outputs}
    ]


def inputs_of(pipe: Any) -> dict[str, Any]:
    """What a call takes, with what each is where a user gives none."""
    named = {one.name or one.kwargs_type: one.default for one in pipe._blocks.inputs}
    return {name: default for name, default in named.items() if name}


def call_settings(pipe: Any) -> dict[str, Any]:
    """What a call of a pipeline takes, with what each setting is where a user gives none.

    Args:
        pipe: The pipeline, classic or modular.
    """
    if is_modular(pipe):
        return {**inputs_of(pipe), STATE: None}
    call = inspect.signature(type(pipe).__call__).parameters
    return {name: one.default for name, one in call.items() if name != "self"}


def asked(pipe: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a call asks for: its arguments, then what its state holds, then what is usual.

    Args:
        pipe: The pipeline.
        arguments: Those of its `__call__`, by name.
    """
    state = arguments.get(STATE)
    held = {} if state is None else dict(state.values)
    return inputs_of(pipe) | held | dict(arguments.get("kwargs", {}))


def refuse_unready(pipe: Any) -> None:
    """Refuse a modular pipeline that has no denoiser, or lacks a part that its steps need.

    Raises:
        UnsupportedModelError: Naming the part, and how to load it.
    """
    if not is_modular(pipe):
        return
    name, expected = (
        type(pipe).__name__,
        {one.name: one for one in pipe._blocks.expected_components},
    )
    if not set(DENOISERS) & set(expected):
        raise UnsupportedModelError(
            f"no block of this {name} denoises: its components are {listing(list(expected))}, none "
            f"of {DENOISERS}; wrap the pipeline whose blocks run the denoiser"
        )
    needed = [one for one in expected if one in (*DENOISERS, "scheduler") or _guides(one)]
    missing = [one for one in needed if getattr(pipe, one, None) is None]
    if missing and denoisers_of(pipe) and not set(missing) & {"scheduler"}:
        missing = [one for one in missing if _guides(one)]  # Wan 2.2 runs with one of its two
    if missing:
        raise UnsupportedModelError(
            f"this {name} has no {listing(missing)} yet; load its components with `pipe.load_"
            f"components()`, or put them in with `pipe.update_components({missing[0]}=…)`"
        )


def _guides(component: str) -> bool:
    return "guider" in component
