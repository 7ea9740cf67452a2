"""Which rows of the denoiser's batch belong to which guidance branch; refused where uncertain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffusion_lens.architectures.spec import Aside, DenoiserSpec
from diffusion_lens.engine.modular import is_modular
from diffusion_lens.engine.run_state import RunState
from diffusion_lens.errors import EngineError, RunError

Rows = tuple[tuple[str, slice], ...]

FURTHER = ("skip", "perturbed", "image")
"""Branches beside the family's own: skip-layer, perturbed-attention and image guidance."""

PIX2PIX = ("cond", "image", "uncond")
"""Batch order of InstructPix2Pix: text and image, the image alone, neither (arXiv 2211.09800)."""


def branch_rows(
    run: RunState,
    pipe: Any,
    spec: DenoiserSpec,
    arguments: Mapping[str, Any],
    batch: int,
    *,
    stated: Sequence[str] | None,
) -> Rows:
    """The rows of each branch, in batch order.

    Args:
        run: What is known of the run.
        pipe: The pipeline.
        spec: The family.
        arguments: The denoiser's arguments.
        batch: Its batch size.
        stated: What the user says that the batch holds.

    Raises:
        EngineError: If it is not certain.
    """
    names = tuple(stated) if stated else _names(run, pipe, spec, arguments, batch)
    if batch % len(names):
        raise EngineError(
            f"a batch of {batch} cannot hold the branches {names} in equal parts; {_remedy(names)}"
        )
    size = batch // len(names)
    uncertain = len(names) > 1 or is_modular(pipe)  # whose blocks may batch as they like
    if not stated and run.in_pipeline and uncertain and run.samples is None:
        raise EngineError(
            f"how many samples this run of {type(pipe).__name__} makes is not known, so neither is "
            f"whether a batch of {batch} holds just the branches {names}; {_remedy(names)}"
        )
    if not stated and run.in_pipeline and run.samples is not None and size != run.samples:
        raise EngineError(
            f"a batch of {batch} for {run.samples} samples does not hold just the branches "
            f"{names}: {type(pipe).__name__} has further ones, or cuts its images up, which is not "
            f"described; {_remedy(names)}"
        )
    return tuple((name, slice(at * size, (at + 1) * size)) for at, name in enumerate(names))


def check_stated(branches: Sequence[str] | None) -> tuple[str, ...] | None:
    """What a batch is said to hold, if these are names.

    Raises:
        RunError: If they are not, or one comes twice.
    """
    if branches is None:
        return None
    wrong = [one for one in branches if not isinstance(one, str) or not one]
    if isinstance(branches, str) or not branches or wrong or len(set(branches)) < len(branches):
        raise RunError(
            f"branches={branches!r}: name each part of the batch once, in order, such as "
            'branches=("uncond", "cond")'
        )
    return tuple(branches)


def _remedy(names: tuple[str, ...]) -> str:
    example = ", ".join(f'"{name}"' for name in (*names, "…"))
    return (
        "say what it holds with `model.hooks(..., branches=(…))` (or `caching`), one name for each "
        f"equal part of the batch, in order: ({example})"
    )


def _names(
    run: RunState, pipe: Any, spec: DenoiserSpec, arguments: Mapping[str, Any], batch: int
) -> tuple[str, ...]:
    beside = asides(spec, arguments)
    if beside:
        return (_only(beside),)
    if not run.in_pipeline:
        return ("cond",)
    if run.prepared is not None:
        return (run.prepared.branch(pipe),)
    if is_modular(pipe):
        return _without_guider(run, pipe)
    if spec.guidance == "calls":
        named = run.named_branch
        if named and named not in (*spec.branches, *FURTHER):
            raise EngineError(
                f"{type(pipe).__name__} names an evaluation of its denoiser {named!r}, known are "
                f"{(*spec.branches, *FURTHER)}, so that hooks could not tell it apart; choose a "
                "guider or a guidance that makes those alone"
            )
        return (named or _by_order(run, pipe, spec),)
    if run.call:
        raise EngineError(
            f"{type(pipe).__name__} evaluates its denoiser {run.call + 1} times in step "
            f"{run.step}, and which branches the later ones hold is not described, so that hooks "
            "could not tell them apart; hook a pipeline that evaluates it once"
        )
    guided = _guided(run, pipe)
    if guided is None and batch != run.samples:
        raise EngineError(
            f"{type(pipe).__name__} does not say whether it guides, so the branches of a batch of "
            f"{batch} are not known; {_remedy(spec.branches)}"
        )
    names = spec.branches if guided else ("cond",)
    if guided and "InstructPix2Pix" in type(pipe).__name__:
        names = PIX2PIX
    if getattr(pipe, "do_perturbed_attention_guidance", False):
        names = (*names, "perturbed")
    return names


def asides(spec: DenoiserSpec, arguments: Mapping[str, Any]) -> dict[str, Aside]:
    """What arguments of the denoiser make of an evaluation, by argument; empty for a branch."""
    return {name: one for name, one in spec.asides.items() if arguments.get(name)}


def _only(beside: Mapping[str, Aside]) -> str:
    """The branch of an evaluation that is none of the family's own.

    Raises:
        EngineError: If it is several at once.
    """
    names = list(dict.fromkeys(one.branch for one in beside.values()))
    if len(names) > 1:
        raise EngineError(
            f"an evaluation with {' and '.join(f'{name}=' for name in beside)} is {names} at "
            "once, which has no name, so that hooks could not tell it apart; say what its batch "
            "holds with `model.hooks(..., branches=(…))`"
        )
    return names[0]


def _without_guider(run: RunState, pipe: Any) -> tuple[str, ...]:
    """The branch of a modular pipeline's evaluation for which no guider prepared a batch."""
    if run.call:
        raise EngineError(
            f"{type(pipe).__name__} evaluates its denoiser {run.call + 1} times in step "
            f"{run.step} without a guider that names the predictions, so that the branches are not "
            "known; let a guider of diffusers prepare the batches"
        )
    return ("cond",)


def _guided(run: RunState, pipe: Any) -> bool | None:
    """Whether a pipeline guides by a second branch: its own word, then what it encoded for."""
    told = getattr(pipe, "do_classifier_free_guidance", None)
    return run.guided if told is None else bool(told)


def _by_order(run: RunState, pipe: Any, spec: DenoiserSpec) -> str:
    """The branch of a call that the pipeline gives no name: by its number within the step."""
    if run.call >= len(spec.branches):
        raise EngineError(
            f"{type(pipe).__name__} calls its denoiser {run.call + 1} times in step "
            f"{run.step} without naming the calls, known are {spec.branches}; hook its "
            "denoiser by hand with `branches=`"
        )
    return spec.branches[run.call]
