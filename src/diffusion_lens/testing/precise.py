"""Comparisons that the precision of a model cannot decide, made again in float64.

In bfloat16 an output of size 1 is rounded by 0.004. An edit that changes it by 0.008 then says
little about which head or stream it was in; in float64 it says everything, however small it is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lens.testing.report import Doubt, Failure, Findings
from diffusion_lens.testing.subject import Subject
from diffusion_lens.testing.tolerances import PRECISE

LARGEST_COPY = 4 * 2**30
"""Bytes. A larger copy might not fit beside the model, and running out of memory ends processes."""

Check = Callable[[Subject, Findings], None]


class NoCopyError(Exception):
    """There can be no copy in float64; the message says why."""


class PreciseCopy:
    """A subject in float64, made where it is first needed."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._made: Subject | NoCopyError | None = None

    def get(self) -> Subject:
        """The copy.

        Raises:
            NoCopyError: If there can be none.
        """
        if self._made is None:
            try:
                self._made = _copied(self.subject)
            except NoCopyError as error:
                self._made = error
        if isinstance(self._made, NoCopyError):
            raise self._made
        return self._made


def settle(precise: PreciseCopy, check: Check, findings: Findings) -> None:
    """Decide the doubts that a check left, by the same check in float64.

    Args:
        precise: The subject in float64.
        check: The check.
        findings: With the doubts, which become failures, or are dropped, or are skipped.
    """
    doubts, findings.doubts = findings.doubts, []
    if not doubts:
        return
    again = Findings()
    try:
        check(precise.get(), again)
    except Exception as error:  # whatever float64 leads to says nothing about the description
        reason = str(error) if isinstance(error, NoCopyError) else f"in float64: {error}"
        for failure, doubt in doubts:
            _leave(findings, failure, doubt, reason)
        return
    certain = {(one.where, one.expected): one for one in again.failures}
    unsure = {(one.where, one.expected): (one, doubt) for one, doubt in again.doubts}
    for failure, _ in doubts:
        key = (failure.where, failure.expected)
        if key in certain:
            findings.failures.append(_in_float64(certain[key]))
        elif key in unsure:
            found, doubt = unsure[key]
            if doubt is Doubt.LOST:
                _leave(findings, found, doubt, "so it is in float64")
            else:
                findings.failures.append(_in_float64(found))


def _leave(findings: Findings, failure: Failure, doubt: Doubt, reason: str) -> None:
    """Without a verdict: what changes nothing at all is taken for what it looks like."""
    if doubt is Doubt.SILENT:
        findings.failures.append(failure)
    else:
        findings.skip(f"{failure} ({doubt.value}; {reason})")


def _in_float64(failure: Failure) -> Failure:
    return replace(failure, found=f"{failure.found} (in float64)")


def _copied(subject: Subject) -> Subject:
    denoiser = subject.denoiser
    size = 8 * sum(weight.numel() for weight in denoiser.parameters())
    if size > LARGEST_COPY:
        raise NoCopyError(f"a copy in float64 would take {size / 2**30:.1f} GiB")
    try:
        # Only values are cast: the override in diffusers keeps some modules in float32.
        copied = nn.Module.to(copy.deepcopy(denoiser), torch.float64)
        made = Subject(copied, _cast(subject.inputs), points=sorted(subject.sample))
    except Exception as error:  # devices and layers without float64 each have an error of their own
        raise NoCopyError(f"no copy in float64: {type(error).__name__}: {error}") from error
    made.tolerance = PRECISE
    return made


def _cast(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _cast(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_cast(inner) for inner in value)
    return value
