"""Clause 4: what is replaced reaches the output, and what cannot reach it says so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from diffusion_lens.architectures.sources import ProductWeights
from diffusion_lens.errors import DeadHookPointError
from diffusion_lens.hook_points import HookContext, HookPoint, Site
from diffusion_lens.testing.report import Doubt, Findings
from diffusion_lens.testing.subject import Subject, noise_like


def replaced(activation: Tensor, hook: HookContext) -> Tensor:
    """A hook that returns a new tensor."""
    return activation + noise_like(activation, hook.name)


def replaced_in_place(activation: Tensor, hook: HookContext) -> None:
    """A hook that changes what it was given and returns nothing."""
    activation += noise_like(activation, hook.name)


def edits_reach_the_output(subject: Subject, findings: Findings) -> None:
    """Clause 4: an edit, returned or in place, changes the output; of a dead point it is an error.

    One forward of its own for each sampled point and way of editing.
    """
    for name in subject.points:
        if name not in subject.sample:
            continue
        for site in _sites(subject.points[name]):
            if _is_dead(subject.points[name], site):
                _edit_is_refused(subject, findings, site)
            else:
                _edit_changes_output(subject, findings, site)
    _dead_points_are_dead(subject, findings)


def _sites(point: HookPoint) -> Iterator[Site]:
    """The whole point; for scores and patterns the rows of each query stream, too."""
    yield Site(point.name)
    queries = point.sequences.get("query", ())
    if isinstance(point.source, ProductWeights) and len(queries) > 1:
        for stream in queries:
            yield Site(point.name, query=stream)


def _is_dead(point: HookPoint, site: Site) -> bool:
    rows_are_dead = site.query is not None and site.query.stream == "txt"
    return bool(point.dead or (rows_are_dead and point.dead_queries))


def _edit_changes_output(subject: Subject, findings: Findings, site: Site) -> None:
    returned = subject.run([(site, replaced)])
    in_place = subject.run([(site, replaced_in_place)])
    changed = not torch.equal(returned, subject.plain)
    findings.check(
        changed,
        4,
        str(site),
        expected="another output after an edit, or the point declared dead",
        found="the same output, bit for bit",
        doubt=None if changed else Doubt.SILENT,
    )
    findings.check(
        torch.equal(in_place, returned),
        4,
        str(site),
        expected="the same output whether the edit is returned or made in place",
        found=f"a difference of up to {float((in_place - returned).abs().max()):.3g}",
    )


def _edit_is_refused(subject: Subject, findings: Findings, site: Site) -> None:
    for hook, way in ((replaced, "a returned edit"), (replaced_in_place, "an edit in place")):
        refused = False
        try:
            subject.run([(site, hook)])
        except DeadHookPointError:
            refused = True
        findings.check(
            refused,
            4,
            str(site),
            expected=f"DeadHookPointError for {way} of a dead point",
            found="no error",
        )


def _dead_points_are_dead(subject: Subject, findings: Findings) -> None:
    """Edit everything that is declared dead, with the declaration set aside: nothing may change."""
    points = subject.points
    dead = {name: point for name, point in points.items() if point.dead}
    rows = {name: point for name, point in points.items() if point.dead_queries}
    if not dead and not rows:
        return
    hooks = [(Site(name), replaced) for name in dead]
    hooks += [(Site(name, query="txt"), replaced) for name in rows]
    for name, point in (dead | rows).items():
        points[name] = replace(point, dead=None, dead_queries=None)
    try:
        found = subject.run(hooks)
    finally:
        points.update(dead | rows)
    findings.check(
        torch.equal(found, subject.plain),
        4,
        ", ".join([*dead, *rows]),
        expected="the same output, since these are declared dead",
        found=f"a difference of up to {float((found - subject.plain).abs().max()):.3g}",
    )
