"""Whether two tensors are the same, and whether two edits are: by what they do to the output.

Rounding is compared with what can have been rounded (the terms of a sum, the output), not only with
what is left of it. A comparison that fails by no more than that, or holds without saying anything,
is a doubt, which `settle` decides in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_lens.testing.report import Doubt, Findings
from diffusion_lens.testing.subject import Subject


@dataclass(frozen=True)
class Comparison:
    """Two tensors compared.

    Attributes:
        holds: Whether they agree.
        found: How they differ, in words.
        doubt: Why that is not certain; None where it is.
    """

    holds: bool
    found: str
    doubt: Doubt | None = None


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
        doubt=None if effect > 0 else Doubt.SILENT,
    )
    share = subject.tolerance.effect
    holds = gap <= share * effect
    # An output is rounded as a whole: of a small effect rounding is a large share.
    explained = gap <= share * max(effect, float(plain.abs().max()))
    doubt = Doubt.ROUNDING if explained and not holds else None
    findings.check(
        holds,
        clause,
        where,
        expected=expected,
        found=f"outputs {gap:.3g} apart, where the edit changes them by {effect:.3g}",
        doubt=Doubt.LOST if effect == gap == 0 else doubt,
    )


def close(
    found: Tensor, expected: Tensor, tolerance: float, *, largest_term: float | None = None
) -> Comparison:
    """Whether two tensors agree up to a share of the largest entry, and how to say it.

    Entries that are infinite in both (masked scores) agree.

    Args:
        found: What was found.
        expected: What it should be.
        tolerance: The share.
        largest_term: Of what was added up to `expected`, where that may cancel; by default its
            largest entry.
    """
    if found.shape != expected.shape:
        return Comparison(False, f"shape {tuple(found.shape)} where {tuple(expected.shape)} fits")
    precision = torch.promote_types(found.dtype, torch.float32)
    differ = found != expected
    if not bool(differ.any()):
        return Comparison(True, "the same values")
    whole = expected[expected.isfinite()]
    term = max(float(whole.abs().max()) if whole.numel() else 0.0, largest_term or 0.0)
    found, expected = found[differ].to(precision), expected[differ].to(precision)
    largest = float(expected.abs().max())
    gap = float((found - expected).abs().max())
    holds = gap <= tolerance * largest
    doubt = Doubt.ROUNDING if not holds and gap <= tolerance * term else None
    return Comparison(holds, f"a difference of {gap:.3g} in values up to {largest:.3g}", doubt)


def adds_up(total: Tensor, start: Tensor, updates: list[Tensor], tolerance: float) -> Comparison:
    """Whether a value is another one plus some updates.

    In doubt where the updates are so small against the rest that leaving them out would hold, too.
    """
    expected, summed = start, torch.zeros_like(start, dtype=torch.float64)
    for update in updates:
        expected, summed = expected + update, summed + update.double()
    largest = max(float(term.abs().max()) for term in (start, *updates))
    compared = close(total, expected, tolerance, largest_term=largest)
    added = float(summed.abs().max())
    if compared.holds and 0 < added <= tolerance * largest:
        found = f"updates of {added:.3g} in values up to {largest:.3g}"
        return Comparison(True, found, Doubt.LOST)
    return compared
