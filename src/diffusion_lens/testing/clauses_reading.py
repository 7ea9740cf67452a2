"""Clauses 1 and 2: reading changes nothing, and every point is read exactly once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from diffusion_lens.hook_points import HookContext
from diffusion_lens.testing.comparing import close
from diffusion_lens.testing.report import Findings
from diffusion_lens.testing.subject import (
    Recorder,
    Subject,
    count_torch_hooks,
    noise_like,
)

BRANCHES = ("uncond", "cond")


def output_is_untouched(subject: Subject, findings: Findings) -> None:
    """Clause 1: bit for bit the same output without hooks and with hooks that only read.

    Read-only hooks are shown the value itself, ordinary ones a copy; both are tried, on every
    point at once. Where the output differs, the points are tried one by one.
    """
    again = subject.run()
    if not torch.equal(again, subject.plain):
        findings.check(
            False, 1, "(denoiser)", expected="the same output twice", found=_gap(subject, again)
        )
        return
    everything = subject.points.__contains__
    for kind, hook in (("read-only hooks", Recorder()), ("hooks that return None", _look)):
        found = subject.run([(everything, hook)])
        equal = torch.equal(found, subject.plain)
        where = ", ".join(_culprits(subject, hook)) if not equal else "every point"
        expected = f"the output bit for bit with {kind}"
        findings.check(equal, 1, where, expected=expected, found=_gap(subject, found))
    model_is_as_it_was(subject, findings)


def model_is_as_it_was(subject: Subject, findings: Findings) -> None:
    """Clause 1, after hooks were on: the plain output bit for bit, and no torch hook left."""
    again = subject.run()
    findings.check(
        torch.equal(again, subject.plain),
        1,
        "(denoiser)",
        expected="the plain output once hooks are off",
        found=_gap(subject, again),
    )
    left = count_torch_hooks(subject.denoiser) - subject.torch_hooks_before
    findings.check(
        left == 0, 1, "(denoiser)", expected="no torch hooks outside contexts", found=str(left)
    )


def _look(_activation: Tensor, _hook: HookContext) -> None:
    """An ordinary hook that edits nothing."""


def _gap(subject: Subject, found: Tensor) -> str:
    return f"a difference of up to {float((found - subject.plain).abs().max()):.3g}"


def _culprits(subject: Subject, hook: Any) -> Iterable[str]:
    alone = [name for name in subject.points if not _equal_with(subject, name, hook)]
    return alone or ["no single point, only all together"]


def _equal_with(subject: Subject, name: str, hook: Any) -> bool:
    return torch.equal(subject.run([(name, hook)]), subject.plain)


def points_fire_once(subject: Subject, findings: Findings) -> None:
    """Clause 2: one firing per evaluation, stream and branch, with the batch of that branch.

    With two branches in the batch each has half of the rows; an edit in one branch must leave the
    rows of the other as they were.
    """
    whole = subject.record(subject.points)
    _count(subject, findings, whole, ("cond",))
    batch = len(subject.inputs[subject.model.spec.latents])
    if batch % 2:
        findings.skip(f"two branches in a batch of {batch}: give a call with an even batch")
        return
    halves = subject.record(subject.points, branches=BRANCHES)
    _count(subject, findings, halves, BRANCHES)
    for name in subject.points:
        parts = [halves.seen.get((name, branch), []) for branch in BRANCHES]
        if not all(parts) or (name, "cond") not in whole.seen:
            continue
        # Patterns are computed branch by branch, and a product of half the rows rounds differently.
        joined = torch.cat([part[0] for part in parts])
        compared = close(joined, whole.seen[name, "cond"][0], subject.tolerance.sum)
        expected = "the branches, one after the other, to be the batch"
        findings.check(**vars(compared), clause=2, where=name, expected=expected)
    _branches_are_apart(subject, findings)


def _count(
    subject: Subject, findings: Findings, recorder: Recorder, branches: tuple[str, ...]
) -> None:
    times = Counter({key: len(values) for key, values in recorder.seen.items()})
    for name in subject.points:
        for branch in branches:
            findings.check(
                times[name, branch] == 1,
                2,
                name,
                expected=f"one firing in branch {branch!r}",
                found=str(times[name, branch]),
            )


def _branches_are_apart(subject: Subject, findings: Findings) -> None:
    def disturb(activation: Tensor, hook: HookContext) -> Tensor | None:
        if hook.branch == "cond":
            return activation + noise_like(activation, hook.name)
        return None

    alive = {name for name in subject.sample if not subject.points[name].dead}
    found = subject.run([(alive.__contains__, disturb)], branches=BRANCHES)
    half = found.shape[0] // 2
    findings.check(
        torch.equal(found[:half], subject.plain[:half]),
        2,
        "every point",
        expected="edits of branch 'cond' to leave 'uncond' as it is",
        found=_gap(subject, torch.cat([found[:half], subject.plain[half:]])),
    )
    findings.check(
        not torch.equal(found[half:], subject.plain[half:]),
        2,
        "every point",
        expected="edits of branch 'cond' to change 'cond'",
        found="the same output",
    )
