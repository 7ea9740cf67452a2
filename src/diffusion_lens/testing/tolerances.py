"""How far two computations of the same thing may lie apart, for each precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tolerance:
    """What rounding may do in one precision.

    Attributes:
        sum: For the same sum taken in another order, in units of its largest term.
        softmax: For row sums of patterns, which are computed in float32 or better.
        effect: For two ways of making the same edit, in units of what the edit does to the output.
            An edit of the wrong head or stream is off by about 1.
    """

    sum: float
    softmax: float
    effect: float


TOLERANCES: dict[torch.dtype, Tolerance] = {
    # 1e-12 is some thousand roundings of 2e-16.
    torch.float64: Tolerance(sum=1e-12, softmax=1e-12, effect=1e-9),
    # 1e-5 is about a hundred roundings of 1e-7: fused kernels add some hundred terms in an order
    # of their own. An edit changes the output by 1e-2 or more, its rounding is below 1e-3 of that.
    torch.float32: Tolerance(sum=1e-5, softmax=1e-5, effect=1e-3),
    # One rounding is 1e-3, and a fused kernel rounds weights, products and the result once each.
    torch.float16: Tolerance(sum=4e-3, softmax=1e-5, effect=0.05),
    # One rounding is 8e-3, otherwise as in float16.
    torch.bfloat16: Tolerance(sum=3e-2, softmax=1e-5, effect=0.2),
}
"""Other precisions (8 bits) have no tolerance that would still tell right from wrong."""

PRECISE = Tolerance(sum=1e-6, softmax=1e-5, effect=1e-3)
"""For a copy in float64, which decides where the precision above cannot.

Families compute norms, rotary embeddings and sums in float32 whatever they are cast to: 1e-6 is
about ten roundings there.
"""
