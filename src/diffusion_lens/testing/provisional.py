"""A class that nobody described: described from one call, and checked on the spot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from diffusion_lens.architectures.catalogue import find_points
from diffusion_lens.architectures.spec import DenoiserSpec
from diffusion_lens.describing import describe
from diffusion_lens.describing.provisional import provisional
from diffusion_lens.errors import UnsupportedModelError, listing
from diffusion_lens.testing.contract import CHECKS
from diffusion_lens.testing.report import Failure, Findings
from diffusion_lens.testing.subject import Subject, suffix

ON_THE_SPOT = (1, 2, 3, 6, 7)
"""Clauses of the contract that need no further forwards for each hook point."""


def described_on_the_spot(
    denoiser: nn.Module, inputs: Mapping[str, Any], answers: Mapping[str, Any]
) -> DenoiserSpec:
    """Describe a denoiser from one call, and keep what the contract finds no fault with.

    Args:
        denoiser: The model, in evaluation mode.
        inputs: The keyword arguments of the call.
        answers: What a run of its pipeline said, field by field.

    Returns:
        The description, without the hook points at which a clause failed.

    Raises:
        UnsupportedModelError: If too little of it could be read, or a clause fails at something
            that is no hook point.
    """
    spec = provisional(describe(denoiser, inputs), answers)
    try:
        subject, findings = _checked(spec, denoiser, inputs)
    except Exception as error:  # whatever a wrong description leads to
        raise UnsupportedModelError(
            f"what was read of {spec.denoiser} does not hold in a run "
            f"({type(error).__name__}: {error}); describe the class by hand, beginning with "
            "`diffusion-lens describe`"
        ) from error
    return _without(subject, findings.report(spec.denoiser).failures)


def _checked(
    spec: DenoiserSpec, denoiser: nn.Module, inputs: Mapping[str, Any]
) -> tuple[Subject, Findings]:
    """A denoiser as described, without points that do not fire, and what the contract finds."""
    subject = Subject(denoiser, inputs, spec=spec)
    fired = {name for name, _ in subject.record(subject.points).seen}
    silent = dict.fromkeys(set(subject.points) - fired, "it did not fire in the call that was read")
    spec = replace(spec, withheld=silent)
    subject, findings = Subject(denoiser, inputs, spec=spec), Findings()
    for clause, check in CHECKS:
        if clause in ON_THE_SPOT:
            check(subject, findings)
    return subject, findings


def _without(subject: Subject, failures: tuple[Failure, ...]) -> DenoiserSpec:
    """A description without the blocks in which a clause failed.

    What fails at one point was read amiss somewhere in its block, and other points may be wrong
    that no clause looks at. A point of the sample stands for all blocks of its kind.
    """
    spec, known = subject.model.spec, find_points(subject.denoiser, subject.model.spec)
    general = [str(one) for one in failures if one.where not in known]
    if general:
        raise UnsupportedModelError(
            f"what was read of {spec.denoiser} does not hold: {listing(general)}; describe the "
            "class by hand, beginning with `diffusion-lens describe`"
        )
    kinds = {at: _kind(subject, at) for at in range(len(subject.blocks))}
    points: dict[str, Failure] = {}
    blocks: dict[int, Failure] = {}
    for one in failures:
        block = known[one.where].block
        told = {
            known[name].block for name in one.expected.replace(",", " ").split() if name in known
        }
        if block is None or told - {block}:
            points.setdefault(one.where, one)  # of what lies outside a block, or between two
            continue
        alike = [at for at, kind in kinds.items() if kind == kinds[block]]
        for at in alike if one.where in subject.sample else [block]:
            blocks.setdefault(at, one)
    if blocks.keys() >= kinds.keys():
        reasons = list(dict.fromkeys(str(blocks[at]) for at in kinds))
        raise UnsupportedModelError(
            f"no block of {spec.denoiser} keeps the contract: {listing(reasons)}; describe the "
            "class by hand, beginning with `diffusion-lens describe`"
        )
    failed = {
        name: f"what was read of it fails clause {found.clause}: {found}"
        for name, point in known.items()
        if (found := points.get(name) or blocks.get(-1 if point.block is None else point.block))
    }
    return replace(spec, withheld={**spec.withheld, **failed})


def _kind(subject: Subject, block: int) -> object:
    """What blocks have in common that a point of one stands for: their class and their points."""
    module = subject.denoiser.get_submodule(subject.blocks[block].path)
    return type(module), frozenset(
        suffix(point) for point in subject.points.values() if point.block == block
    )
