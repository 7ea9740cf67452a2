"""What a family's description says of its pipelines, checked against brief runs of one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from diffusion_lens.border import PipelineSetting, public
from diffusion_lens.describing.pipelines import ALONE, CHANGED, PROMPTS, Asked, ask_pipeline
from diffusion_lens.engine.words import refuse_other_text
from diffusion_lens.errors import ContractError, WordError
from diffusion_lens.hook_points import HookContext
from diffusion_lens.hooked_diffusion import HookedDiffusion


@public
def check_pipeline(
    pipe: Any, *, denoiser: str | None = None, **call: PipelineSetting
) -> tuple[str, ...]:
    """Check what a description says of a pipeline: branches, timesteps, grid, words.

    Two runs of two steps, with prompts that differ in one word, show it. A run with guidance shows
    how branches come; a prompt's words show where the text encoder reads from left to right. Of the
    grid the number of tokens is compared, not their order; the usual lengths of texts, negative
    prompts and what pads them are not looked at.

    Args:
        pipe: A diffusers pipeline of a known family.
        denoiser: The pipeline's attribute whose calls are looked at; None is the first.
        **call: Arguments of the pipeline's call; a small image by default.

    Returns:
        What these runs left open, a line each.

    Raises:
        ContractError: If the description says something else; the message lists what.
        UnsupportedModelError: If the denoiser is of no known family, or the pipeline does not run.
    """
    model = HookedDiffusion(pipe, denoiser=denoiser)
    asked = ask_pipeline(pipe, model.denoiser, call)
    wrong, left_open = [], []
    for field, said, seen in _compared(model, asked, call):
        if seen is None or said is None:
            left_open.append(f"{field}: not seen in this run")
        elif said != seen:
            wrong.append(
                f"{field}: described as {said!r}, a run of {type(pipe).__name__} has {seen!r}"
            )
    if wrong:
        raise ContractError("\n".join(wrong))
    return tuple(left_open)


def _compared(
    model: HookedDiffusion, asked: Asked, call: dict[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Each field with what is described, and with what was seen; None where nothing was."""
    spec, answers = model.spec, dict(asked.answers)
    if answers.get("branches") == ALONE["branches"]:
        answers |= {"guidance": None, "branches": None}
    yield "guidance", spec.guidance, answers.get("guidance")
    yield "branches", spec.branches, answers.get("branches")
    yield "timestep_scale", spec.timestep_scale, answers.get("timestep_scale")
    tokens = math.prod(spec.grid(model.denoiser, asked.inputs, 0))
    yield "grid, in tokens", tokens, _image_tokens(model, asked)
    yield f"place of {CHANGED!r} in the text", *_places(model, asked, call)


def _image_tokens(model: HookedDiffusion, asked: Asked) -> int | None:
    """How many tokens the image has in the first block; None where it has others beside its own."""
    filled_up = isinstance(asked.inputs[model.spec.latents], list)  # to multiples, sample by sample
    if filled_up or model.spec.image_length is not None:
        return None
    seen: list[int] = []

    def count(activation: Tensor, _hook: HookContext) -> None:
        seen.append(activation.shape[1])

    bare = HookedDiffusion(model.denoiser, spec=model.spec)
    with torch.no_grad(), bare.hooks([("blocks.0.img.hook_resid_pre", count)]):
        model.denoiser(**asked.inputs)
    return seen[0]


def _places(
    model: HookedDiffusion, asked: Asked, call: dict[str, Any]
) -> tuple[int | str | None, int | None]:
    """Where the word that was changed begins, as described, and the first row that it moved."""
    length = call.get("max_sequence_length")
    try:
        refuse_other_text(model.pipe, model.spec.text_parts, call)
    except WordError:
        return None, asked.first_moved or None
    try:
        told = model.prompt_tokens(PROMPTS[0], max_sequence_length=length).find(CHANGED)
    except WordError as error:
        refused = any(part.untold for part in model.spec.text_parts)
        return (None if refused else f"nowhere, {error}"), asked.first_moved or None
    place = min(told) - model.points["hook_text_emb"].skipped
    # An encoder that reads both ways, or a text that is read anew in each run, moves every row.
    return place, asked.first_moved or None
