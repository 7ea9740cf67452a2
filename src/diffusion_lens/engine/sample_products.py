"""Attention that is worked out sample by sample, each without the tokens that its mask drops.

Mochi's processor calls the fused product once for each sample and pads what comes out. Hooks see
one product of the whole batch, in which dropped tokens are zeros that nobody attends to; the
kernel still gets each sample as the model gave it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_lens.engine.product import Product
from diffusion_lens.engine.selection import positions
from diffusion_lens.hook_points.selectors import Indices

STEPS = frozenset({F.pad})
"""What a processor does with each sample's output before it joins them."""


@dataclass
class SampleProduct(Product):
    """The products of all samples as one; `mask` hides the keys of dropped tokens.

    Attributes:
        samples: Each sample's own, as the model called it.
    """

    samples: Sequence[Product] = ()

    @classmethod
    def of(cls, samples: Sequence[Product], length: int) -> SampleProduct:
        """Join them.

        Args:
            samples: Each sample's own.
            length: Number of tokens with the dropped ones.
        """

        def joined(which: str) -> Tensor:
            return torch.cat([_padded(getattr(one, which), length) for one in samples])

        query, key, value = joined("query"), joined("key"), joined("value")
        counts = torch.tensor([one.key.shape[2] for one in samples], device=key.device)
        kept = torch.arange(length, device=key.device) < counts[:, None]
        scale = samples[0].scale
        return cls(query, key, value, kept[:, None, None], scale=scale, samples=samples)

    def fused(self) -> Tensor:
        """The output of every sample, by the calls that the model made; 0 at dropped tokens."""
        owns = [self._own(row) for row in range(len(self.samples))]
        return torch.cat([_padded(own.fused(), self.query.shape[2]) for own in owns])

    def _own(self, row: int) -> Product:
        """One sample's product, with what hooks made of it, laid out as the model's own was."""
        own = self.samples[row]

        def cut(which: str) -> Tensor:
            like: Tensor = getattr(own, which)
            part = getattr(self, which)[row : row + 1, :, : like.shape[2]]
            return torch.empty_like(like).copy_(part)

        return replace(own, query=cut("query"), key=cut("key"), value=cut("value"))

    def _kernel_gives_normaliser(self) -> bool:
        return False

    def _masked(
        self,
        scores: Tensor,
        rows: slice,
        heads: Indices | None,
        queries: Indices | None,
        keys: Indices | None,
    ) -> Tensor:
        """Dropped tokens do not ask, either."""
        scores = super()._masked(scores, rows, heads, queries, keys)
        assert self.mask is not None
        lines = positions(queries, self.query.shape[2], scores)
        asks = self.mask[rows, 0, 0][:, lines]
        return scores.masked_fill(~asks[:, None, :, None], -math.inf)


class SampleProducts:
    """Gathers the products of one call of one attention module and hands them on as one.

    The processor goes on with the first sample's output before it asks for the second's. What it
    gets when it pads one is filled in when the last is there, before the processor joins them.
    """

    def __init__(self, batch: int, attend: Callable[[int, Product], Tensor]) -> None:
        """Wait for as many samples as the batch has."""
        self.batch = batch
        self.attend = attend
        self.samples: list[Product] = []
        self.outputs: list[Tensor] = []

    def take(self, _call: int, product: Product) -> Tensor:
        """A sample's product; gives something of its output's shape, without memory."""
        self.samples.append(product)
        return product.query.new_zeros(()).expand(*product.query.shape[:3], product.value.shape[3])

    def pad(self, _func: Any, args: tuple, _kwargs: dict[str, Any]) -> Tensor:
        """What a sample's output is padded to."""
        given, amounts = args
        *before, after = amounts
        assert not any(before), "dropped tokens come last"
        shape = (*given.shape[:2], given.shape[2] + after, given.shape[3])
        self.outputs.append(given.new_empty(shape))
        if len(self.outputs) == self.batch:
            joined = self.attend(0, SampleProduct.of(self.samples, shape[2]))
            for place, found in zip(self.outputs, joined.split(1), strict=True):
                place.copy_(found)
        return self.outputs[-1]


def _padded(value: Tensor, length: int) -> Tensor:
    return F.pad(value, (0, 0, 0, length - value.shape[2]))
