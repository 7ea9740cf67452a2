"""Attention products that a processor works out in steps: scores, softmax, values.

`Attention.get_attention_scores` makes scores and pattern, heads folded into the batch; the
processor multiplies with the values itself. Both exist as tensors, so an edit replaces them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

STEPS = frozenset({torch.baddbmm, Tensor.float, Tensor.softmax, Tensor.to, torch.bmm})
"""What `Attention.get_attention_scores` and the processors that call it are made of."""


@runtime_checkable
class Follower(Protocol):
    """Who runs the hooks of a product on the way; tensors have axes batch, head, token, …."""

    def begin(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Take the next product's query and key; give what to go on with."""
        ...

    def weigh(self, which: str, value: Tensor) -> Tensor:
        """Take `scores` or `pattern` of it."""
        ...

    def end(self, value: Tensor) -> Tensor:
        """Take its values."""
        ...

    def give(self, output: Tensor) -> Tensor:
        """Take its output."""
        ...


class SoftmaxProduct:
    """Follows the explicit products of one call of one attention module."""

    def __init__(self, heads: int, follower: Callable[[], Follower]) -> None:
        """Follow a module.

        Args:
            heads: Its number of heads.
            follower: Makes who follows one product.
        """
        self.heads = heads
        self.follower = follower
        self.running: Follower | None = None
        self._weights: Tensor | None = None

    def __call__(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Stand in for a function that the module calls: known by the tensor that it is given."""
        if func is torch.baddbmm:
            return self._scores(*args, **kwargs)
        if self._weights is None or not args or args[0] is not self._weights:
            return func(*args, **kwargs)
        if func is torch.bmm:
            return self._output(*args, **kwargs)
        self._weights = func(*args, **kwargs)
        return self._weights

    def _scores(self, added: Tensor, query: Tensor, key: Tensor, **factors: Any) -> Tensor:
        """Scaled and masked scores, from queries and transposed keys."""
        self.running = self.follower()
        folded = (query, key.transpose(-1, -2))
        given = self._unfolded(*folded)
        asked, found = self.running.begin(*given)
        query = query if asked is given[0] else asked.flatten(0, 1)
        key = key if found is given[1] else found.flatten(0, 1).transpose(-1, -2)
        scores = torch.baddbmm(added, query, key, **factors)
        self._weights = self._weighed("scores", scores)
        return self._weights

    def _output(self, pattern: Tensor, value: Tensor, **more: Any) -> Tensor:
        running = self.running
        assert running is not None
        pattern = self._weighed("pattern", pattern)
        (given,) = self._unfolded(value)
        after = running.end(given)
        output = torch.bmm(pattern, value if after is given else after.flatten(0, 1), **more)
        (given,) = self._unfolded(output)
        after = running.give(given)
        self.running = self._weights = None
        return output if after is given else after.flatten(0, 1)

    def _weighed(self, which: str, value: Tensor) -> Tensor:
        """Show scores or a pattern in single precision at least, as those of a fused product."""
        assert self.running is not None
        (shown,) = self._unfolded(value.to(torch.promote_types(value.dtype, torch.float32)))
        after = self.running.weigh(which, shown)
        return value if after is shown else after.flatten(0, 1).to(value.dtype)

    def _unfolded(self, *folded: Tensor) -> Sequence[Tensor]:
        return [tensor.unflatten(0, (-1, self.heads)) for tensor in folded]
