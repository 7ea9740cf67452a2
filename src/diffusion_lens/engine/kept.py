"""References whose keys and values one evaluation keeps for later ones.

Where they are made, a processor calls the fused product twice: for all other queries, which see
every key, and for the references', which see their own. Hooks see one product of all tokens in
the order of their sequence; the kernel still gets both as the model gave them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from diffusion_lens.architectures.spec import Kept
from diffusion_lens.engine.product import Product
from diffusion_lens.engine.selection import positions
from diffusion_lens.errors import EngineError
from diffusion_lens.hook_points.selectors import Indices


def counts(kept: Kept | None, arguments: Mapping[str, Any]) -> tuple[int, int]:
    """Number of references that an evaluation makes, and that it uses.

    Raises:
        EngineError: If it uses a cache that has been emptied.
    """
    mode = None if kept is None else arguments.get(kept.mode)
    if kept is None or mode is None:
        return 0, 0
    if mode == kept.making:
        return int(arguments.get(kept.count) or 0), 0
    cache = arguments.get(kept.cache)
    if mode != kept.using or cache is None:
        return 0, 0
    found = int(getattr(cache, kept.count))
    if not found:
        raise EngineError(
            "the cache of the references' keys and values is empty: the run that made it is over, "
            "so that no other can branch off behind its first step; run the pipeline from the start"
        )
    return 0, found


@dataclass
class JoinedProduct(Product):
    """Both products as one.

    Attributes:
        at: Where the references lie along the sequence.
        others: The product of all other queries, as the model called it.
        own: That of the references.
    """

    at: slice = field(default_factory=lambda: slice(0))
    others: Product | None = None
    own: Product | None = None

    @property
    def hides(self) -> bool:
        """Other tokens, from the references."""
        return True

    def fused(self) -> Tensor:
        """The output of both, by the calls that the model made."""
        assert self.others is not None and self.own is not None
        outside, at = self._outside(self.query), self.at
        found = replace(
            self.others,
            query=_like(self.others.query, outside),
            key=_like(self.others.key, self.key),
            value=_like(self.others.value, self.value),
        ).fused()
        own = replace(
            self.own,
            query=_like(self.own.query, self.query[:, :, at]),
            key=_like(self.own.key, self.key[:, :, at]),
            value=_like(self.own.value, self.value[:, :, at]),
        ).fused()
        return torch.cat([found[:, :, : at.start], own, found[:, :, at.start :]], 2)

    def _outside(self, value: Tensor) -> Tensor:
        return torch.cat([value[:, :, : self.at.start], value[:, :, self.at.stop :]], 2)

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
        """References see themselves alone."""
        scores = super()._masked(scores, rows, heads, queries, keys)
        lines = positions(queries, self.query.shape[2], scores)
        columns = positions(keys, self.key.shape[2], scores)
        hidden = self._is_reference(lines)[:, None] & ~self._is_reference(columns)[None, :]
        return scores.masked_fill(hidden, -math.inf)

    def _is_reference(self, places: Tensor) -> Tensor:
        return (places >= self.at.start) & (places < self.at.stop)


class JoinedProducts:
    """Gathers both products of one call of one attention module and hands them on as one.

    The processor goes on with slices of the first's output before it asks for the second's. They
    are views, filled in when the second is there, before the processor joins them.
    """

    def __init__(self, at: slice, attend: Callable[[int, Product], Tensor]) -> None:
        """Wait for both.

        Args:
            at: Where the references lie along the sequence.
            attend: Gives the output of a product, by its place among the call's.
        """
        self.at = at
        self.attend = attend
        self._others: Product | None = None
        self._output: Tensor | None = None

    def take(self, call: int, product: Product) -> Tensor:
        """One of the two; the output, of the first to be filled in with the second."""
        if call == 0 and product.query.shape[2] == product.key.shape[2]:
            raise EngineError(
                "this attention processor lets references see all tokens, and keeps no keys: its "
                "pipeline's own (`pipe._set_kv_attn_processors()`) do"
            )
        if self._others is None:
            shape = (*product.query.shape[:3], product.value.shape[3])
            self._others, self._output = product, product.query.new_empty(shape)
            return self._output
        others, output, at = self._others, self._output, self.at
        assert output is not None
        query = others.query
        joined = JoinedProduct(
            torch.cat([query[:, :, : at.start], product.query, query[:, :, at.start :]], 2),
            others.key,
            others.value,
            scale=others.scale,
            shared=others.shared,
            at=at,
            others=others,
            own=product,
        )
        found = self.attend(0, joined)
        output.copy_(joined._outside(found))
        return found[:, :, at]


def _like(model: Tensor, value: Tensor) -> Tensor:
    """A value laid out as the model's own: kernels choose by strides."""
    return torch.empty_like(model).copy_(value)
