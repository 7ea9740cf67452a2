"""Clause 6: what is added to the residual stream adds up, when read and when edited."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from diffusion_lens.architectures.spec import Attention, BlockSite
from diffusion_lens.hook_points import HookContext
from diffusion_lens.testing.comparing import adds_up, close, same_effect
from diffusion_lens.testing.report import Findings
from diffusion_lens.testing.subject import Subject, noise_like

Stretch = tuple[str, str, tuple[str, ...]]
"""From one residual point to the next, with the updates that are added between them."""


def updates_add_up(subject: Subject, findings: Findings) -> None:
    """Clause 6: each residual is the one before it plus the updates, and blocks hand it on."""
    wanted = {name for name in subject.points if ".hook_resid_" in name or "_update" in name}
    values = subject.record(wanted).values() if wanted else {}
    for block in subject.blocks:
        for start, end, updates in _stretches(block):
            added = [values[update] for update in updates]
            compared = adds_up(values[end], values[start], added, subject.tolerance.sum)
            expected = " + ".join([start, *updates])
            findings.check(**vars(compared), clause=6, where=end, expected=expected)
    for before, after in _neighbours(subject):
        equal = torch.equal(values[before], values[after])
        expected = f"{before}, bit for bit"
        findings.check(equal, 6, after, expected=expected, found="another value")


def edits_add_up(subject: Subject, findings: Findings) -> None:
    """Clause 6: a residual edit equals the edit of the update that leads to it.

    Setting the residual after some updates back to what it was before them must do what zeroing
    these updates does. That holds only if the skip path sees the edit as well as the next norm.
    """
    for block in subject.blocks:
        for start, end, updates in _stretches(block):
            if end not in subject.sample or subject.points[end].dead:
                continue
            before = subject.record([start]).values()[start]
            by_hook = subject.run([(end, _Put(before))])
            otherwise = subject.run([(update, _zero) for update in updates])
            same_effect(
                subject,
                findings,
                6,
                end,
                by_hook=by_hook,
                otherwise=otherwise,
                expected=f"setting it back to {start} to equal zeroing {', '.join(updates)}",
            )
    for before, after in _neighbours(subject):
        if before in subject.sample and not subject.points[before].dead:
            by_hook = subject.run([(before, _add_noise)])
            otherwise = subject.run([(after, _add_noise)])
            expected = f"an edit to equal that of {after}"
            same_effect(
                subject, findings, 6, before, by_hook=by_hook, otherwise=otherwise,
                expected=expected,
            )  # fmt: skip


def results_add_up(subject: Subject, findings: Findings) -> None:
    """Clause 6: the heads' results and the projection's bias add up to the raw output.

    Where attention and MLP share a projection, the bias belongs to the MLP.
    """
    for block in subject.blocks:
        for attention in block.spec.attentions:
            for stream in attention.projections:
                result = f"{block.prefix}.{attention.name}.{stream}.hook_result"
                if result in subject.sample:
                    _result_adds_up(subject, findings, block, attention, stream, result)


def _result_adds_up(
    subject: Subject,
    findings: Findings,
    block: BlockSite,
    attention: Attention,
    stream: str,
    result: str,
) -> None:
    raw = f"{block.prefix}.{stream}.hook_{attention.name}_out"
    values = subject.record([result, raw]).values()
    total, terms = values[result].sum(-2), float(values[result].abs().sum(-2).max())
    projection = attention.projections[stream]
    module = subject.denoiser.get_submodule(block.inside(projection.module))
    bias = getattr(module, "bias", None)
    if isinstance(bias, Tensor) and not projection.fused:
        total = total + bias.detach()
        terms += float(bias.detach().abs().max())
    compared = close(values[raw], total, subject.tolerance.sum, largest_term=terms)
    expected = f"the sum of {result} over heads, plus the bias"
    findings.check(**vars(compared), clause=6, where=raw, expected=expected)


def _stretches(block: BlockSite) -> Iterator[Stretch]:
    for stream, described in block.spec.streams.items():
        base = f"{block.prefix}.{stream}"
        at = f"{base}.hook_resid_pre"
        ends = [(mid.name, mid.updates, mid.beside) for mid in described.mids]
        if described.returned:
            ends.append(("resid_post", described.updates, False))
        for name, sublayers, beside in ends:
            end = f"{base}.hook_{name}"
            yield at, end, tuple(f"{base}.hook_{sublayer}_update" for sublayer in sublayers)
            at = at if beside else end


def _neighbours(subject: Subject) -> Iterator[tuple[str, str]]:
    """Points of one stream between which nothing happens: end of a block, start of the next.

    Blocks of one list follow each other directly, and so do lists that the denoiser holds itself;
    between the transformers of a U-Net lie ResNets. Streams that a description says are changed
    between the blocks are left out.
    """
    for block, following in pairwise(subject.blocks):
        lists = {one.path.rpartition(".")[0] for one in (block, following)}
        if block.refines != following.refines:
            continue
        if len(lists) > 1 and any("." in path for path in lists):
            continue
        changed = subject.model.spec.between(subject.denoiser, block.index)
        for stream in block.spec.streams.keys() - changed.keys():
            before = f"{block.prefix}.{stream}.hook_resid_post"
            after = f"{following.prefix}.{stream}.hook_resid_pre"
            if before in subject.points and after in subject.points:
                yield before, after


class _Put:
    """A hook that puts a fixed value in place."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def __call__(self, _activation: Tensor, _hook: HookContext) -> Tensor:
        return self.value


def _zero(activation: Tensor, _hook: HookContext) -> Tensor:
    return activation * 0


def _add_noise(activation: Tensor, _hook: HookContext) -> Tensor:
    return activation + noise_like(activation, "noise")
