"""What a family's description says of its pipelines, checked against brief runs of one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from diffusion_lens.border import PipelineSetting, public
from diffusion_lens.describing.pipelines import (
    ALONE,
    CHANGED,
    LONGER,
    PROMPTS,
    Asked,
    Moved,
    ask_again,
    ask_pipeline,
)
from diffusion_lens.describing.placing import in_order
from diffusion_lens.engine.words import refuse_other_text
from diffusion_lens.errors import ContractError, WordError
from diffusion_lens.hook_points import HookContext
from diffusion_lens.hooked_diffusion import HookedDiffusion


@public
def check_pipeline(
    pipe: Any, *, denoiser: str | None = None, **call: PipelineSetting
) -> tuple[str, ...]:
    """Check what a description says of a pipeline: branches, timesteps, grid, words.

    Runs of two steps show it, in pairs whose prompts, at two lengths, or negative prompts differ in
    one word. A run with guidance shows how branches come; words show where the text encoder reads
    from left to right. The order of the grid is seen where latents have height and width, by
    disturbing their corners; the usual length of texts where the call does not set it: texts of
    both lengths that are as long are held to it, others are only to be no longer.

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
    yield "grid, order", *_order(model, asked)
    yield f"place of {CHANGED!r} in the text", *_places(model, asked, call)
    further = {name: value for name, value in call.items() if name not in ("prompt", *NEGATIVE)}
    pair = [{**further, "prompt": one} for one in LONGER]
    moved = ask_again(model.pipe, model.denoiser, pair, asked.text)
    yield f"place of {CHANGED!r} in a longer text", *_again(model, LONGER[0], moved, call)
    yield "text_tokens", *_text_tokens(model, asked, moved, call)
    pair = [{**further, "prompt": LONGER[0], NEGATIVE[0]: one} for one in PROMPTS]
    moved = ask_again(model.pipe, model.denoiser, pair, asked.text)
    told = _again(model, PROMPTS[0], moved, call, negative=True)
    yield f"place of {CHANGED!r} in a negative prompt", *told


NEGATIVE = ("negative_prompt",)


def _order(model: HookedDiffusion, asked: Asked) -> tuple[str | None, str | None]:
    """Whether the corners of the latents are the tokens at the ends of the grid."""
    spec, latents = model.spec, asked.inputs[model.spec.latents]
    axes = model.points["hook_latents"].axes[1:]
    spatial = "height" in axes and isinstance(latents, Tensor) and latents.ndim == len(axes) + 1
    if not spatial or spec.image_length is not None:
        return None, None
    bare = HookedDiffusion(model.denoiser, spec=spec)

    def entering(changed: Tensor) -> Tensor:
        seen: list[Tensor] = []
        note = [("blocks.0.img.hook_resid_pre", lambda value, _hook: seen.append(value.clone()))]
        with torch.no_grad(), bare.hooks(note):
            model.denoiser(**{**asked.inputs, spec.latents: changed})
        return seen[0]

    grid = spec.grid(model.denoiser, asked.inputs, 0)
    ordered = "its corners are the latents'"
    return ordered, ordered if in_order(latents, axes, grid, entering) else "another"


def _again(
    model: HookedDiffusion,
    prompt: str,
    moved: Moved | None,
    call: dict[str, Any],
    *,
    negative: bool = False,
) -> tuple[int | None, int | None]:
    """Where the word that was changed begins in a further text, and the first row that moved."""
    if moved is None or not moved.row:  # an encoder that reads both ways moves every row
        return None, None
    length = call.get("max_sequence_length")
    try:
        told = model.prompt_tokens(prompt, max_sequence_length=length, negative=negative)
        return min(told.find(CHANGED)) - model.points["hook_text_emb"].skipped, moved.row
    except WordError:  # a text that is too long in this run; the first place says if none is told
        return None, None


def _text_tokens(
    model: HookedDiffusion, asked: Asked, moved: Moved | None, call: dict[str, Any]
) -> tuple[int | None, int | None]:
    """The usual length of the text, and the one that was seen where that says it."""
    spec, seen = model.spec, asked.answers["text_tokens"]
    if moved is None or spec.text_beside or {"max_sequence_length", "prompt_embeds"} & set(call):
        return None, None
    if spec.text_length and {*spec.text_length(model.denoiser, asked.inputs)} != {seen}:
        return None, None  # the argument is a part of the text
    usual, limits = spec.text_tokens, {getattr(model.pipe, "tokenizer_max_length", None)}
    limits |= {getattr(model.pipe, one.tokenizer).model_max_length for one in spec.text_parts}
    if seen < usual and seen in limits:
        return None, None  # this pipeline is set to another length
    filled_up = seen == moved.tokens
    return usual, seen if filled_up or moved.tokens > usual else usual


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
