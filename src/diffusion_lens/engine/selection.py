"""Cutting the part that a Site addresses out of a tensor, and putting it back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from diffusion_lens.errors import SiteError
from diffusion_lens.hook_points.point import HookPoint
from diffusion_lens.hook_points.selectors import Indices, Part, Tokens
from diffusion_lens.hook_points.site import Site
from diffusion_lens.showing.one_line import counted

KEPT = 256
"""How many indices and rows of factors are kept on devices, over all models."""

WordLookup = Callable[[str], tuple[int, ...]]


def take(value: Tensor, part: Part) -> Tensor:
    """The part of a tensor: a view where every index is a slice, otherwise a copy."""
    for dim, index in part:
        if isinstance(index, slice):
            start, stop, step = index.indices(value.shape[dim])
            value = value[(slice(None),) * dim + (slice(start, stop, step),)]
        else:
            value = value.index_select(dim, as_tensor(index, value))
    return value


def put(value: Tensor, part: Part, replacement: Tensor) -> None:
    """Write a part back into the tensor that it was taken from, in place."""
    if not part:
        value.copy_(replacement)
        return
    (dim, index), *rest = part
    if isinstance(index, slice):
        put(take(value, ((dim, index),)), tuple(rest), replacement)
        return
    inner = take(value, ((dim, index),))
    put(inner, tuple(rest), replacement)
    value.index_copy_(dim, as_tensor(index, value), inner)


def as_tensor(index: tuple[int, ...], like: Tensor) -> Tensor:
    """Indices as a tensor beside `like`, which nobody may write to."""
    return _kept(index, like.device, torch.int64)


def as_factors(factors: tuple[float, ...], like: Tensor) -> Tensor:
    """Numbers as a tensor beside `like` and in its precision, which nobody may write to."""
    return _kept(factors, like.device, like.dtype)


def positions(index: Indices | None, length: int, like: Tensor) -> Tensor:
    """The selected entries of an axis, as a tensor beside `like`."""
    if isinstance(index, tuple):
        return as_tensor(index, like)
    chosen = range(length) if index is None else range(*index.indices(length))
    stop = chosen.start + chosen.step * len(chosen)
    return torch.arange(chosen.start, stop, chosen.step, device=like.device)


@functools.lru_cache(maxsize=KEPT)
def _kept(numbers: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    # A copy from a list waits for the accelerator, and hooks ask for the same one at every step.
    with torch.inference_mode(False):  # else backward passes of later runs could not save it
        return torch.tensor(numbers, device=device, dtype=dtype)


def size_of(index: Indices | None, length: int) -> int:
    """How many entries an index selects of `length`."""
    if index is None:
        return length
    return len(range(*index.indices(length))) if isinstance(index, slice) else len(index)


def numbers(index: Indices | None, length: int) -> tuple[int, ...]:
    """The selected entries as numbers."""
    if index is None:
        return tuple(range(length))
    return tuple(range(*index.indices(length))) if isinstance(index, slice) else index


def token_index(
    tokens: Tokens | None,
    sequence: Sequence[str],
    lengths: Mapping[str, int],
    words: WordLookup,
    *,
    where: str,
) -> Indices | None:
    """Turn a token selector into an index along one axis.

    Args:
        tokens: The selector; None selects the whole axis.
        sequence: The streams along the axis, in order.
        lengths: Token count of each of them.
        words: Gives the text-stream indices of a word of the prompt.
        where: What to call the axis in an error.

    Returns:
        The index, or None for the whole axis.

    Raises:
        SiteError: If an index lies outside.
    """
    if tokens is None:
        return None
    stream = tokens.stream or ("txt" if tokens.words else None)
    start = 0
    length = sum(lengths[name] for name in sequence)
    if stream is not None:
        start = sum(lengths[name] for name in sequence[: list(sequence).index(stream)])
        length = lengths[stream]
    if tokens.words:
        found = tuple(dict.fromkeys(index for word in tokens.words for index in words(word)))
        return tuple(start + index for index in _inside(found, length, where))
    if tokens.indices is None:
        return slice(start, start + length)
    if isinstance(tokens.indices, slice):
        first, last, step = tokens.indices.indices(length)
        beyond = tokens.indices.stop is not None and tokens.indices.stop > length
        if first >= last or beyond:
            raise SiteError(
                f"{where}: {tokens.indices} does not lie inside the {counted(length, 'token')} of "
                f"{_called(stream)}"
            )
        return slice(start + first, start + last, step)
    return tuple(start + index for index in _inside(tokens.indices, length, where))


def behind(tokens: Tokens | None, skipped: int, *, where: str) -> Tokens | None:
    """A token selector where the first tokens of the stream are not there yet.

    Args:
        tokens: The selector, whose indices count from the start of the whole stream.
        skipped: How many tokens are missing at its start.
        where: What to call the axis in an error.

    Raises:
        SiteError: If one of those is asked for.
    """
    if tokens is None or not skipped or tokens.indices is None:
        return tokens
    indices = tokens.indices
    ends = (indices.start or 0,) if isinstance(indices, slice) else indices
    if any(0 <= at < skipped for at in ends):
        raise SiteError(
            f"{where}: the first {counted(skipped, 'token')} of stream 'txt' are added inside the "
            f"denoiser and are not there yet; ask for {skipped} and later ones, or for a point of "
            "the blocks, such as blocks.0.txt.hook_resid_pre"
        )

    def moved(at: int | None) -> int | None:
        return at if at is None or at < 0 else at - skipped

    if isinstance(indices, slice):
        return replace(
            tokens, indices=slice(moved(indices.start), moved(indices.stop), indices.step)
        )
    return replace(tokens, indices=tuple(at if at < 0 else at - skipped for at in indices))


def _inside(indices: Sequence[int], length: int, where: str) -> tuple[int, ...]:
    wrong = [index for index in indices if not -length <= index < length]
    if wrong:
        raise SiteError(
            f"{where}: index {wrong[0]} is out of range, there are {counted(length, 'token')} "
            f"(0 to {length - 1}); `hook.words` maps the prompt's words to indices"
        )
    return tuple(dict.fromkeys(index % length for index in indices))


def _called(stream: str | None) -> str:
    return "the whole axis" if stream is None else f"stream {stream!r}"


def selects(point: HookPoint, site: Site) -> bool:
    """Whether a Site's selectors fit the axes and streams of a point."""
    by_axis: dict[str, Tokens | None] = {"query": site.query, "key": site.key, "pos": site.pos}
    for axis, tokens in by_axis.items():
        if tokens is None:
            continue
        if axis not in point.axes:
            return False
        stream = tokens.stream or ("txt" if tokens.words else None)
        if stream is not None and stream not in point.sequences.get(axis, ()):
            return False
    return site.heads is None or _has_heads(point, site)


def _has_heads(point: HookPoint, site: Site) -> bool:
    if point.heads is None or site.heads is None:
        return False
    pairs = isinstance(site.heads[0], tuple)
    return not pairs or heads_in(point, site) != ()


def heads_in(point: HookPoint, site: Site) -> tuple[int, ...] | None:
    """The heads of a point that a Site selects, None for all.

    Raises:
        SiteError: If a head does not exist there.
    """
    if site.heads is None or point.heads is None:
        return None
    heads = tuple(
        head if isinstance(head, int) else head[1]
        for head in site.heads
        if isinstance(head, int) or head[0] == point.block
    )
    wrong = [head for head in heads if not -point.heads <= head < point.heads]
    if wrong:
        raise SiteError(
            f"{point.name} has {counted(point.heads, 'head')} (0 to {point.heads - 1}), head "
            f"{wrong[0]} was asked for in {site!r}; where blocks differ give (block, head) pairs"
        )
    return tuple(dict.fromkeys(head % point.heads for head in heads))


def contiguous(indices: Indices | None) -> Indices | None:
    """A slice where consecutive numbers allow it, since slices cut without copying."""
    if isinstance(indices, tuple) and indices == tuple(
        range(indices[0], indices[0] + len(indices))
    ):
        return slice(indices[0], indices[-1] + 1)
    return indices
