"""Clauses 3 and 5 inside the attention products: pattern, q, k, v and z share their heads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from diffusion_lens.architectures.spec import Attention, BlockSite
from diffusion_lens.hook_points import HookContext
from diffusion_lens.testing.comparing import close
from diffusion_lens.testing.report import Findings
from diffusion_lens.testing.subject import Hook, Subject

MASKED = -1000.0
"""Scores below this are hidden by a mask (masks are -inf, or -10000 added)."""


@dataclass(frozen=True)
class Product:
    """One attention product of one block, by the names of its points.

    Attributes:
        base: What the names of pattern and scores begin with.
        queries: For each query stream, the name of its q.
        keys: For each key stream, the name of its k.
        values: The same of its v.
    """

    base: str
    queries: tuple[str, ...]
    keys: tuple[str, ...]
    values: tuple[str, ...]

    @property
    def pattern(self) -> str:
        """Name of the pattern."""
        return f"{self.base}.hook_pattern"

    @property
    def scores(self) -> str:
        """Name of the scores."""
        return f"{self.base}.hook_attn_scores"

    @property
    def names(self) -> tuple[str, ...]:
        """Every point of the product."""
        return (self.pattern, self.scores, *self.queries, *self.keys, *self.values)


def products_of(block: BlockSite, attention: Attention) -> Iterator[Product]:
    """The products of one attention module."""
    base = f"{block.prefix}.{attention.name}"
    for name in attention.products:
        keys = (name,) if name else attention.keys
        yield Product(
            base=f"{base}.{name}" if name else base,
            queries=tuple(f"{base}.{stream}.hook_q" for stream in attention.queries),
            keys=tuple(f"{base}.{stream}.hook_k" for stream in keys),
            values=tuple(f"{base}.{stream}.hook_v" for stream in keys),
        )


def patterns_make_z(subject: Subject, findings: Findings) -> None:
    """Clause 3: pattern rows sum to 1 (0 where fully masked), and pattern @ v is z, by head.

    A module's z is the sum over its products: an IP-Adapter must have scale 1.
    """
    for block in subject.blocks:
        for attention in filter(_has_products, block.spec.attentions):
            values = _recorded(subject, block, attention)
            for product in products_of(block, attention):
                _rows_sum_to_one(subject, findings, product, values[product.pattern])
            _mixed_values_are_z(subject, findings, block, attention, values, clause=3)


def edits_keep_to_their_head(subject: Subject, findings: Findings) -> None:
    """Clause 5, first half: q, k, v, scores, pattern and z have the same heads, in edits too.

    Every head of q, k and v is scaled by a factor of its own. Then the scores of each head must
    be those of its own edited q and k, and its z that of its own edited v.
    """
    for block in subject.blocks:
        for attention in filter(_has_products, block.spec.attentions):
            products = list(products_of(block, attention))
            q = {name for product in products for name in product.queries}
            k = {name for product in products for name in product.keys}
            v = {name for product in products for name in product.values}
            alive = {name for name in q | k | v if not subject.points[name].dead}
            before = _recorded(subject, block, attention)
            edits: list[Hook] = [(alive.__contains__, scale_each_head)]
            values = _recorded(subject, block, attention, edits)
            for name in sorted(alive):
                _edit_arrived(findings, name, before[name], values[name])
            for product in products:
                _scores_are_products(subject, findings, product, values)
            _mixed_values_are_z(subject, findings, block, attention, values, clause=5)


def _has_products(attention: Attention) -> bool:
    """Linear attention has none."""
    return bool(attention.products)


def head_factors(heads: int) -> Float[Tensor, " head"]:
    """A factor for each head that tells it from the others; the first is 0.

    Powers of two scale without rounding, in any precision. Beyond eight heads factors come again.
    """
    factors = torch.tensor([0.0, -1.0, 0.5, 2.0, -0.5, -2.0, 0.25, 4.0])
    return factors.repeat(-(-heads // len(factors)))[:heads]


def scale_each_head(activation: Tensor, hook: HookContext) -> Tensor:
    """A hook that scales every head by its own factor."""
    axis = hook.axis("head")
    shape = [1] * activation.ndim
    shape[axis] = -1
    return activation * head_factors(activation.shape[axis]).to(activation).view(shape)


def _recorded(
    subject: Subject, block: BlockSite, attention: Attention, edits: Sequence[Hook] = ()
) -> dict[str, Tensor]:
    names = {name for product in products_of(block, attention) for name in product.names}
    names |= {f"{block.prefix}.{attention.name}.{one}.hook_z" for one in attention.projections}
    return subject.record(names, edits).values()


def _rows_sum_to_one(
    subject: Subject, findings: Findings, product: Product, pattern: Tensor
) -> None:
    sums = pattern.sum(-1)
    gap = torch.minimum((sums - 1).abs(), sums.abs()).max()
    negative = bool((pattern < 0).any())
    findings.check(
        float(gap) <= subject.tolerance.softmax and not negative,
        3,
        product.pattern,
        expected="rows that sum to 1, or to 0 where fully masked",
        found=f"sums from {float(sums.min()):.6g} to {float(sums.max()):.6g}",
    )


def _mixed_values_are_z(
    subject: Subject,
    findings: Findings,
    block: BlockSite,
    attention: Attention,
    values: dict[str, Tensor],
    *,
    clause: int,
) -> None:
    mixed: Tensor | None = None
    terms = 0.0
    for product in products_of(block, attention):
        value = torch.cat([values[name] for name in product.values], 1)
        pattern = values[product.pattern]
        part = einsum(pattern, value.to(pattern.dtype), "b h q k, b k h d -> b q h d")
        mixed = part if mixed is None else mixed + part
        apart = einsum(pattern, value.abs().to(pattern.dtype), "b h q k, b k h d -> b q h d")
        terms += float(apart.max())
    assert mixed is not None
    lengths = {
        stream: values[f"{block.prefix}.{attention.name}.{stream}.hook_q"].shape[1]
        for stream in attention.queries
    }
    start = 0
    for stream in attention.queries:
        rows = slice(start, start + lengths[stream])
        start += lengths[stream]
        name = f"{block.prefix}.{attention.name}.{stream}.hook_z"
        if name not in values:
            continue
        compared = close(values[name], mixed[:, rows], subject.tolerance.sum, largest_term=terms)
        expected = "pattern @ v, head by head"
        findings.check(**vars(compared), clause=clause, where=name, expected=expected)


def _edit_arrived(findings: Findings, name: str, before: Tensor, after: Tensor) -> None:
    """The first head is zero and the second one is not (the values have few exact zeros)."""
    zero = bool((after[:, :, 0] == 0).all())
    others = after.shape[2] == 1 or not bool((after[:, :, 1] == 0).all())
    changed = not torch.equal(before, after)
    findings.check(
        zero and others and changed,
        5,
        name,
        expected="an edit of the first head to reach that head",
        found="other values",
    )


def _scores_are_products(
    subject: Subject, findings: Findings, product: Product, values: dict[str, Tensor]
) -> None:
    scores = values[product.scores]
    query = torch.cat([values[name] for name in product.queries], 1).to(scores.dtype)
    key = torch.cat([values[name] for name in product.keys], 1).to(scores.dtype)
    raw = einsum(query, key, "b q h d, b k h d -> b h q k")
    seen = scores > MASKED
    factor = (scores * raw)[seen].sum() / (raw * raw)[seen].sum()
    apart = einsum(query.abs(), key.abs(), "b q h d, b k h d -> b h q k")[seen]
    terms = float(factor.abs() * apart.max())
    compared = close(scores[seen], (factor * raw)[seen], subject.tolerance.sum, largest_term=terms)
    expected = "q @ k of the same head, times one factor"
    findings.check(**vars(compared), clause=5, where=product.scores, expected=expected)
    pattern = torch.softmax(scores, -1).nan_to_num(0.0)
    # The softmax turns a rounding of its scores into a share of each weight.
    terms = max(1.0, float(scores[seen].abs().max()))
    compared = close(values[product.pattern], pattern, subject.tolerance.sum, largest_term=terms)
    expected = "the softmax of the scores of the same head"
    findings.check(**vars(compared), clause=5, where=product.pattern, expected=expected)
