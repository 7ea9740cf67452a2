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
from diffusion_lens.testing.subject import Subject

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
    subject = Subject(denoiser, inputs, spec=spec)
    fired = {name for name, _ in subject.record(subject.points).seen}
    silent = dict.fromkeys(set(subject.points) - fired, "it did not fire in the call that was read")
    spec = replace(spec, withheld=silent)
    subject, findings = Subject(denoiser, inputs, spec=spec), Findings()
    for clause, check in CHECKS:
        if clause in ON_THE_SPOT:
            check(subject, findings)
    return _without(spec, denoiser, findings.report(spec.denoiser).failures)


def _without(
    spec: DenoiserSpec, denoiser: nn.Module, failures: tuple[Failure, ...]
) -> DenoiserSpec:
    """A description without the points at which a clause failed."""
    known = set(find_points(denoiser, spec))
    general = [str(one) for one in failures if one.where not in known]
    if general:
        raise UnsupportedModelError(
            f"what was read of {spec.denoiser} does not hold: {listing(general)}; describe the "
            "class by hand, beginning with `diffusion-lens describe`"
        )
    failed = {
        one.where: f"what was read of it fails clause {one.clause}: {one}" for one in failures
    }
    return replace(spec, withheld={**spec.withheld, **failed})
