"""What a pipeline's own run says of its denoiser: one call's arguments, branches, timesteps."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lens.describing.inputs import read_inputs
from diffusion_lens.describing.tracing import bound, tensors
from diffusion_lens.errors import UnsupportedModelError

PROMPTS = ("a photo of a cat on a table", "a photo of a dog on a table")
CHANGED = "cat"
"""They differ in this word."""

SIDES = (8, 16, 32, 64)
"""Latents along a side that are tried, the smallest first."""

LONGER = tuple(f"today, {one} at night" for one in PROMPTS)
"""The same with further words in front and behind."""

STEPS = 2
ALONE = {"guidance": "calls", "branches": ("cond",)}
"""Where the prompt's own branch alone was seen: a run with others is refused."""


@dataclass(frozen=True)
class Asked:
    """What two short runs of a pipeline said, with prompts that differ in one word.

    Attributes:
        inputs: The keyword arguments of the first call of the denoiser.
        answers: Fields of a `DenoiserSpec` that no call of the denoiser alone shows: `guidance`,
            `branches`, `timestep_scale`, `text_tokens`; those that could not be told are not there.
        first_moved: The first row of the prompt's text that the other word moved; None where the
            two texts have other lengths.
        text: The argument with the text.
    """

    inputs: Mapping[str, Any]
    answers: Mapping[str, Any]
    first_moved: int | None
    text: str


def ask_pipeline(pipe: Any, denoiser: nn.Module, settings: Mapping[str, Any]) -> Asked:
    """Run a pipeline briefly and see how it calls its denoiser.

    Args:
        pipe: The pipeline.
        denoiser: Its denoiser.
        settings: Arguments of the pipeline's call, in place of those of a small image.

    Raises:
        UnsupportedModelError: If it does not run.
    """
    first, second = (_calls(pipe, denoiser, {"prompt": one, **settings}) for one in PROMPTS)
    inputs = read_inputs(type(denoiser).__name__, first[0])
    per_step = len(first) // len(pipe.scheduler.timesteps)
    moved = [_moved_samples(a, b, inputs.text) for a, b in zip(first, second, strict=True)]
    answers: dict[str, Any] = {"text_tokens": inputs.text_tokens}
    answers |= _branches(moved[:per_step])
    scale = _scale([one[inputs.timestep] for one in first[::per_step]], pipe.scheduler.timesteps)
    if scale is not None:
        answers["timestep_scale"] = scale
    texts = (first[0][inputs.text], second[0][inputs.text])
    return Asked(first[0], answers, _first_moved(*texts), inputs.text)


@dataclass(frozen=True)
class Moved:
    """What two further runs showed, whose arguments differ in one word.

    Attributes:
        row: The first row of a text that the other word moved; None where none was.
        tokens: Length of the text of the first call.
    """

    row: int | None
    tokens: int


def ask_again(
    pipe: Any, denoiser: nn.Module, pair: Sequence[Mapping[str, Any]], text: str
) -> Moved | None:
    """See what another word moves; None where the pipeline takes no such argument.

    Args:
        pipe: The pipeline.
        denoiser: Its denoiser.
        pair: The arguments of both runs.
        text: The denoiser's argument with the text.
    """
    if set(pair[0]) - set(inspect.signature(type(pipe).__call__).parameters):
        return None
    runs = [_calls(pipe, denoiser, settings) for settings in pair]
    rows = [_first_moved(ours[text], theirs[text]) for ours, theirs in zip(*runs, strict=True)]
    own = runs[0][0][text]
    tokens = own.shape[1] if isinstance(own, Tensor) else max(len(one) for one in own)
    return Moved(min((row for row in rows if row is not None), default=None), tokens)


def _calls(pipe: Any, denoiser: nn.Module, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The arguments of each call of the denoiser in a run of two steps."""
    accepted = inspect.signature(type(pipe).__call__).parameters
    usual = {"num_inference_steps": STEPS, "output_type": "latent", "negative_prompt": "blurred"}
    sized = {"height", "width"} & set(settings) or "height" not in accepted
    sizes = [{}] if sized else _sizes(pipe)
    refused = ""
    for size in sizes:
        found: list[dict[str, Any]] = []
        handle = denoiser.register_forward_pre_hook(_noting(found), with_kwargs=True)
        generator = torch.Generator().manual_seed(0)
        try:
            with torch.no_grad():
                given = {**usual, "generator": generator, **size, **settings}
                pipe(**{name: value for name, value in given.items() if name in accepted})
        except Exception as error:  # a pipeline may refuse a size, or want an image, in any way
            refused = f"{type(error).__name__}: {error}"
            continue
        finally:
            handle.remove()
        steps = len(pipe.scheduler.timesteps)  # some schedulers take more than they are asked for
        if found and len(found) % steps == 0:
            return found
        refused = f"it called its denoiser {len(found)} times in {steps} steps"
    raise UnsupportedModelError(
        f"{type(pipe).__name__} could not be run briefly to see how it calls its "
        f"{type(denoiser).__name__} ({refused}); give the arguments of a brief run of it: "
        "HookedDiffusion(pipe, describe={'height': ..., ...})"
    )


def _noting(found: list[dict[str, Any]]) -> Any:
    def note(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        found.append(bound(module, args, kwargs))

    return note


def _sizes(pipe: Any) -> list[dict[str, int]]:
    names = ("vae_scale_factor", "vae_scale_factor_spatial")
    by = next((int(found) for name in names if (found := getattr(pipe, name, None))), 8)
    return [{"height": side * by, "width": side * by} for side in SIDES]


def _moved_samples(first: Mapping[str, Any], second: Mapping[str, Any], text: str) -> list[bool]:
    """For each sample of a call whether its text is another one for another prompt."""
    ours, theirs = first[text], second[text]
    count = len(ours)
    return [
        any(
            a.shape != b.shape or not torch.equal(a, b)
            for (_, a), (_, b) in zip(tensors(ours[at]), tensors(theirs[at]), strict=True)
        )
        for at in range(count)
    ]


def _first_moved(first: Any, second: Any) -> int | None:
    """The first row in which two texts differ, in any sample."""
    rows = []
    for ours, theirs in zip(first, second, strict=True):
        if ours.shape != theirs.shape:
            return None
        differs = (ours != theirs).flatten(1).any(1)
        rows += differs.nonzero().flatten().tolist()[:1]
    return min(rows, default=None)


def _branches(moved: Sequence[Sequence[bool]]) -> dict[str, Any]:
    """How the branches of one step come, by which of its texts a prompt moves."""
    names = {True: "cond", False: "uncond"}
    if len(moved) == 1 and len(moved[0]) <= 2:
        found = tuple(names[one] for one in moved[0])
        guidance = "batched"
    elif len(moved) == 2 and all(len(one) == 1 for one in moved):
        found = tuple(names[one[0]] for one in moved)
        guidance = "calls"
    else:
        return ALONE
    if found == ("cond",):
        return ALONE  # how branches come under guidance was not seen
    return {"guidance": guidance, "branches": found} if len(set(found)) == 2 else ALONE


def _scale(given: Sequence[Any], timesteps: Tensor) -> float | None:
    """As `DenoiserSpec.timestep_scale`; None where what is given is no multiple of timesteps."""
    ours = torch.stack([torch.as_tensor(one).flatten()[0].double().cpu() for one in given])
    theirs = timesteps.double().cpu()[: len(ours)]
    for scale in (1.0, 1000.0):
        if torch.allclose(ours * scale, theirs, rtol=1e-3, atol=1e-3):
            return scale
        if torch.allclose((1 - ours) * 1000.0, theirs, rtol=1e-3, atol=1e-2):
            return -1000.0
    return None
