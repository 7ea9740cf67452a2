"""Clause 5, second half: the heads of z and result are the columns of the out projection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diffusion_lens.architectures.catalogue import head_sizes
from diffusion_lens.architectures.spec import Attention, BlockSite
from diffusion_lens.testing.clauses_products import head_factors, scale_each_head
from diffusion_lens.testing.comparing import same_effect
from diffusion_lens.testing.report import Findings
from diffusion_lens.testing.subject import Subject
from diffusion_lens.testing.weights import is_editable, scaled_columns


@dataclass(frozen=True)
class OutProjection:
    """One out projection, with the streams that it takes z of.

    Attributes:
        path: The module.
        streams: The streams along its sequence whose z is alive.
        base: What the names of their points begin with.
    """

    path: str
    streams: tuple[str, ...]
    base: str

    def names(self, quantity: str) -> list[str]:
        """The names of a quantity, one for each stream."""
        return [f"{self.base}.{stream}.{quantity}" for stream in self.streams]


def heads_are_columns(subject: Subject, findings: Findings) -> None:
    """Clause 5: scaling each head of z, or of result, equals scaling its columns of the weight.

    Every head has a factor of its own and the first is zeroed, so that one forward tells all heads
    apart.
    """
    for block in subject.blocks:
        for attention in block.spec.attentions:
            heads, d_head = head_sizes(subject.denoiser, block, attention)
            factors = head_factors(heads).repeat_interleave(d_head)
            for projection in _projections(subject, block, attention):
                names = set(projection.names("hook_z"))
                if not names & subject.sample:
                    continue
                module: Any = subject.denoiser.get_submodule(projection.path)
                if not is_editable(module):
                    findings.skip(f"heads of {projection.path}: no ordinary linear layer")
                    continue
                with scaled_columns(module, factors):
                    otherwise = subject.run()
                _compare(subject, findings, projection, "hook_z", otherwise)
                _compare(subject, findings, projection, "hook_result", otherwise)


def _projections(
    subject: Subject, block: BlockSite, attention: Attention
) -> Iterator[OutProjection]:
    base = f"{block.prefix}.{attention.name}"
    by_path: dict[str, list[str]] = {}
    for stream, projection in attention.projections.items():
        if not subject.points[f"{base}.{stream}.hook_z"].dead:
            by_path.setdefault(block.inside(projection.module), []).append(stream)
    for path, streams in by_path.items():
        yield OutProjection(path, tuple(streams), base)


def _compare(
    subject: Subject,
    findings: Findings,
    projection: OutProjection,
    quantity: str,
    otherwise: Tensor,
) -> None:
    names = projection.names(quantity)
    by_hook = subject.run([(name, scale_each_head) for name in names])
    same_effect(
        subject,
        findings,
        5,
        ", ".join(names),
        by_hook=by_hook,
        otherwise=otherwise,
        expected=f"scaling heads to equal scaling their columns of {projection.path}",
    )
