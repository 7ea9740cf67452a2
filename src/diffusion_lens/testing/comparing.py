"""Whether two tensors are the same, and whether two edits are: by what they do to the output."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusion_lens.testing.report import Findings
from diffusion_lens.testing.subject import Subject


def same_effect(
    subject: Subject,
    findings: Findings,
    clause: int,
    where: str,
    *,
    by_hook: Tensor,
    otherwise: Tensor,
    expected: str,
) -> None:
    """Compare the outputs after two edits, in units of what the edits do.

    Args:
        subject: The denoiser under test.
        findings: Where the comparison goes.
        clause: Number of the clause.
        where: The hook point.
        by_hook: The output after the edit by a hook.
        otherwise: The output after the edit that it should equal.
        expected: The equality in words.
    """
    plain = subject.plain.double()
    effect = float((otherwise.double() - plain).abs().max())
    gap = float((by_hook.double() - otherwise.double()).abs().max())
    findings.check(
        effect > 0,
        clause,
        where,
        expected=f"{expected}; the second edit must change the output",
        found="the same output as without it",
    )
    findings.check(
        gap <= subject.tolerance.effect * effect or effect == 0,
        clause,
        where,
        expected=expected,
        found=f"outputs {gap:.3g} apart, where the edit changes them by {effect:.3g}",
    )


def close(found: Tensor, expected: Tensor, tolerance: float) -> tuple[bool, str]:
    """Whether two tensors agree up to a share of the largest entry, and how to say it.

    Entries that are infinite in both (masked scores) agree.
    """
    if found.shape != expected.shape:
        return False, f"shape {tuple(found.shape)} where {tuple(expected.shape)} fits"
    precision = torch.promote_types(found.dtype, torch.float32)
    differ = found != expected
    if not bool(differ.any()):
        return True, "the same values"
    found, expected = found[differ].to(precision), expected[differ].to(precision)
    largest = float(expected.abs().max())
    gap = float((found - expected).abs().max())
    return gap <= tolerance * largest, f"a difference of {gap:.3g} in values up to {largest:.3g}"
