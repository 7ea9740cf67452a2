"""Parts of an attention pattern, computed as parts.

The fused kernel gives the logarithm of each row's normaliser; with it the block of wanted heads,
queries and keys is exact in value and nothing else is computed. The kernel's normaliser carries no
gradient, so where autograd records it is computed anew, differentiably and in chunks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from diffusion_lens.engine.selection import (
    as_tensor,
    contiguous,
    numbers,
    positions,
    size_of,
    take,
)
from diffusion_lens.hook_points.selectors import Indices

CHUNK = 2**18
"""Scores computed at once: 1 MB in float32, which stays in a processor core's own cache."""

NORMALISER_CHUNK = 2**21
"""The same for normalisers alone, whose scores are read once and thrown away."""

FEW_KEYS = 32
"""Up to this many keys the transposed layout (keys by queries) is faster."""

FLASH_ON_CPU = 1
"""The number that `torch._fused_sdp_choice` gives the kernel that also returns normalisers."""


class Workspace:
    """Memory for blocks of patterns that are computed again at every step.

    Fresh memory costs a page fault for every 4 kB that is written to it, which for large patterns
    takes longer than the arithmetic. Whoever keeps what is computed here must copy it: the next
    block of the same shape, of another layer or of the next step, is written to the same place.
    """

    def __init__(self) -> None:
        """Nothing is allocated yet."""
        self.buffers: dict[tuple[object, ...], Tensor] = {}

    def empty(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Uninitialised memory of a shape, the same as last time."""
        key = (shape, like.dtype, like.device)
        if key not in self.buffers:
            self.buffers[key] = like.new_empty(shape)
        return self.buffers[key]


@dataclass
class Product:
    """One call of `scaled_dot_product_attention`, with its arguments.

    Attributes:
        query: Axes batch, head, query, d_head.
        key: Axes batch, head, key, d_head; fewer heads where they are shared.
        value: Like `key`.
        mask: Boolean (True attends) or added to the scores, broadcastable to the pattern.
        dropout: Dropout probability.
        causal: Whether queries see only keys up to their own index.
        scale: Factor on the scores; None means `1 / sqrt(d_head)`.
        shared: Whether several query heads share a key head.
        normaliser: Logarithm of each row's normaliser, where the kernel gave it.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None = None
    dropout: float = 0.0
    causal: bool = False
    scale: float | None = None
    shared: bool = False
    normaliser: Tensor | None = field(default=None, repr=False)

    @property
    def factor(self) -> float:
        """The factor on the scores."""
        return 1 / math.sqrt(self.query.shape[-1]) if self.scale is None else self.scale

    @property
    def hides(self) -> bool:
        """Whether scores are masked."""
        return self.mask is not None or self.causal

    @property
    def dtype(self) -> torch.dtype:
        """In which scores and pattern are computed: float32, or float64 for float64 models."""
        return torch.promote_types(self.query.dtype, torch.float32)

    def fused(self) -> Tensor:
        """The attention output, by the very call that the model made."""
        return F.scaled_dot_product_attention(
            self.query,
            self.key,
            self.value,
            attn_mask=self.mask,
            dropout_p=self.dropout,
            is_causal=self.causal,
            scale=self.scale,
            enable_gqa=self.shared,
        )

    def fused_with_normaliser(self) -> Tensor:
        """The attention output, bit for bit that of `fused`, keeping the rows' normalisers."""
        if not self._kernel_gives_normaliser():
            return self.fused()
        mask = self.mask
        if mask is not None and mask.dtype == torch.bool:  # this kernel takes masks to add only
            mask = torch.zeros_like(mask, dtype=self.query.dtype).masked_fill_(~mask, -math.inf)
        output, self.normaliser = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            self.query, self.key, self.value, 0.0, self.causal, attn_mask=mask, scale=self.scale
        )
        return output

    def _kernel_gives_normaliser(self) -> bool:
        # The kernel's normaliser carries no gradient: patterns made with it would have a wrong one.
        recorded = torch.is_grad_enabled() and any(
            tensor.requires_grad for tensor in (self.query, self.key, self.value)
        )
        device = self.query.device.type
        if recorded or device != "cpu" or self.shared or self.dropout:
            return False
        if torch.is_autocast_enabled(device) or self.factor <= 0:
            return False
        choice = torch._fused_sdp_choice(
            self.query, self.key, self.value, self.mask, 0.0, self.causal, scale=self.scale
        )
        return choice == FLASH_ON_CPU

    def pattern(
        self,
        rows: slice,
        heads: Indices | None,
        queries: Indices | None,
        keys: Indices | None,
        *,
        workspace: Workspace | None = None,
    ) -> Tensor:
        """A block of the pattern; None stands for a whole axis.

        Args:
            rows: Rows of the batch.
            heads: Heads.
            queries: Queries.
            keys: Keys.
            workspace: Memory to use again, where the caller keeps nothing.

        Returns:
            Axes batch, head, query, key; each row of the whole pattern sums to 1, or to 0 where
            the mask hides every key.
        """
        if size_of(keys, self.key.shape[2]) == self.key.shape[2]:
            whole = self.rows(rows, heads, queries, workspace=workspace)
            return whole if keys is None else take(whole, ((3, keys),))
        query, key = self._part(rows, heads, queries, keys)
        normaliser = self._normaliser(rows, heads, queries)
        if not self.hides and key.shape[2] <= FEW_KEYS:
            # Few keys by many queries is faster this way round, and is shown transposed.
            scores = _matmul(key * self.factor, query.transpose(-1, -2), workspace)
            return _exponential(scores, normaliser.unsqueeze(-2)).transpose(-1, -2)
        scores = _matmul(query, (key * self.factor).transpose(-1, -2), workspace)
        scores = self._masked(scores, rows, heads, queries, keys)
        return _exponential(scores, normaliser.unsqueeze(-1))

    def rows(
        self,
        rows: slice,
        heads: Indices | None,
        queries: Indices | None,
        *,
        workspace: Workspace | None = None,
    ) -> Tensor:
        """Whole rows of the pattern, softmaxed chunk by chunk."""
        query, key = self._part(rows, heads, queries, None)
        key = (key * self.factor).transpose(-1, -2)
        shape = (*query.shape[:3], key.shape[-1])
        if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad):
            scores = self._masked(query @ key, rows, heads, queries, None)
            return safe_softmax(scores)
        out = query.new_empty(shape) if workspace is None else workspace.empty(shape, query)
        per_chunk = max(1, CHUNK // max(1, shape[0] * shape[-1]))
        head_step = max(1, per_chunk // shape[2])
        query_step = min(shape[2], per_chunk)
        for head in range(0, shape[1], head_step):
            for start in range(0, shape[2], query_step):
                chunk = query[:, head : head + head_step, start : start + query_step]
                scores = chunk @ key[:, head : head + head_step]
                target = out[:, head : head + head_step, start : start + query_step]
                if self.hides:
                    part = _within(heads, slice(head, head + head_step), self.query.shape[1])
                    lines = _within(queries, slice(start, start + query_step), self.query.shape[2])
                    target.copy_(safe_softmax(self._masked(scores, rows, part, lines, None)))
                else:
                    torch.softmax(scores, -1, out=target)
        return out

    def scores(
        self, rows: slice, heads: Indices | None, queries: Indices | None, keys: Indices | None
    ) -> Tensor:
        """A block of the scaled and masked scores before the softmax."""
        query, key = self._part(rows, heads, queries, keys)
        scores = query @ (key * self.factor).transpose(-1, -2)
        return self._masked(scores, rows, heads, queries, keys)

    def values(self, rows: slice, heads: Indices | None, keys: Indices | None) -> Tensor:
        """A block of the values, one for each query head, in the pattern's precision."""
        value = self._shared_heads(self.value[rows], heads)
        value = value if keys is None else take(value, ((2, keys),))
        return value.to(self.dtype)

    def _part(
        self, rows: slice, heads: Indices | None, queries: Indices | None, keys: Indices | None
    ) -> tuple[Tensor, Tensor]:
        query, key = self.query[rows], self._shared_heads(self.key[rows], heads)
        query = query if heads is None else take(query, ((1, heads),))
        query = query if queries is None else take(query, ((2, queries),))
        key = key if keys is None else take(key, ((2, keys),))
        return query.to(self.dtype), key.to(self.dtype)

    def _shared_heads(self, tensor: Tensor, heads: Indices | None) -> Tensor:
        count = self.query.shape[1]
        if tensor.shape[1] == count:
            return tensor if heads is None else take(tensor, ((1, heads),))
        group = count // tensor.shape[1]
        wanted = tuple(head // group for head in numbers(heads, count))
        return tensor.index_select(1, as_tensor(wanted, tensor))

    def _masked(
        self,
        scores: Tensor,
        rows: slice,
        heads: Indices | None,
        queries: Indices | None,
        keys: Indices | None,
    ) -> Tensor:
        if self.causal:
            lines = positions(queries, self.query.shape[2], scores)
            columns = positions(keys, self.key.shape[2], scores)
            scores = scores.masked_fill(columns[None, :] > lines[:, None], -math.inf)
        if self.mask is None:
            return scores
        mask = self.mask
        mask = mask.reshape((1,) * (4 - mask.ndim) + tuple(mask.shape))
        for dim, index in ((0, rows), (1, heads), (2, queries), (3, keys)):
            if index is not None and mask.shape[dim] > 1:
                mask = take(mask, ((dim, index),))
        if mask.dtype == torch.bool:
            return scores.masked_fill(~mask, -math.inf)
        return scores + mask.to(scores.dtype)

    def _normaliser(self, rows: slice, heads: Indices | None, queries: Indices | None) -> Tensor:
        if self.normaliser is not None:
            found = self.normaliser[rows]
            found = found if heads is None else take(found, ((1, heads),))
            return (found if queries is None else take(found, ((2, queries),))).to(self.dtype)
        query, key = self._part(rows, heads, queries, None)
        key = (key * self.factor).transpose(-1, -2)
        count = query.shape[2]
        step = max(1, NORMALISER_CHUNK // max(1, query.shape[0] * query.shape[1] * key.shape[-1]))
        places = numbers(queries, self.query.shape[2])

        def logarithms(chunk: Tensor, key: Tensor, lines: tuple[int, ...]) -> Tensor:
            scores = self._masked(chunk @ key, rows, heads, contiguous(lines), None)
            found = torch.logsumexp(scores, -1)
            return found.masked_fill(found == -math.inf, 0.0)  # -inf minus -inf would be nan

        recorded = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad)
        parts = []
        for start in range(0, count, step):
            chunk, lines = query[:, :, start : start + step], places[start : start + step]
            if recorded:
                parts.append(checkpoint(logarithms, chunk, key, lines, use_reentrant=False))
            else:
                parts.append(logarithms(chunk, key, lines))
        return torch.cat(parts, -1)


def safe_softmax(scores: Tensor) -> Tensor:
    """Softmax over keys, 0 where every key is hidden (what the fused kernels give)."""
    hidden = (scores == -math.inf).all(-1, keepdim=True)
    return torch.softmax(scores.masked_fill(hidden, 0.0), -1).masked_fill(hidden, 0.0)


def _matmul(left: Tensor, right: Tensor, workspace: Workspace | None) -> Tensor:
    if workspace is None or left.requires_grad or right.requires_grad:
        return left @ right
    shape = (*left.shape[:-1], right.shape[-1])
    return torch.matmul(left, right, out=workspace.empty(shape, left))


def _exponential(scores: Tensor, normaliser: Tensor) -> Tensor:
    if scores.requires_grad or normaliser.requires_grad:
        return (scores - normaliser).exp()
    return scores.sub_(normaliser).exp_()


def _within(index: Indices | None, part: slice, length: int) -> Indices:
    return numbers(index, length)[part] if index is not None else part
