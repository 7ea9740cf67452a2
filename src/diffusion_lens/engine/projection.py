"""The out projection: z on its way in, each head's result and the raw outputs behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from diffusion_lens.architectures.spec import Projection
from diffusion_lens.errors import EngineError

Fire = Callable[[Tensor], Tensor]


def stream_slice(
    sequence: Sequence[str], stream: str, lengths: Mapping[str, int], total: int
) -> slice:
    """Where a stream lies along a sequence of `total` tokens."""
    if len(sequence) == 1:
        same_length(stream, total, lengths)
        return slice(0, total)
    start = sum(lengths[name] for name in sequence[: list(sequence).index(stream)])
    return slice(start, start + lengths[stream])


def same_length(stream: str, found: int, lengths: Mapping[str, int]) -> None:
    """Refuse a value that has another number of tokens than its stream.

    Raises:
        EngineError: As where a block merges tokens on the way.
    """
    known = lengths.get(stream, found)
    if known != found:
        raise EngineError(
            f"the block got {known} tokens of stream {stream!r}, and {found} arrive inside it: it "
            "merges or adds tokens on the way (tomesd does), so places cannot be told; take that "
            "patch off (`tomesd.remove_patch(pipe)`). In a description that is being written: this "
            "is another stream's projection"
        )


def tokens_of(value: Tensor, maps: str) -> Tensor:
    """Maps as tokens; `maps` as in `Mlp`."""
    if maps == "channel last":
        return value.flatten(1, -2)
    return value.flatten(2).transpose(1, 2) if maps else value


def on_tokens(maps: str, fire: Fire) -> Fire:
    """Hooks with a position axis on maps."""

    def on_maps(value: Tensor) -> Tensor:
        shown = tokens_of(value, maps)
        after = fire(shown)
        if after is shown:
            return value
        return (after.transpose(1, 2) if maps == "channel first" else after).reshape(value.shape)

    return on_maps if maps else fire


def on_batch_first(fire: Fire, *, positions_first: bool) -> Fire:
    """Hooks with the batch before the positions, whatever the order of the value."""
    return on_swapped(0, 1, fire) if positions_first else fire


def on_swapped(one: int, other: int, fire: Fire) -> Fire:
    """Hooks on a value with two of its axes exchanged."""

    def swapped(value: Tensor) -> Tensor:
        shown = value.transpose(one, other)
        after = fire(shown)
        return value if after is shown else after.transpose(one, other)

    return swapped


def on_columns(
    module: nn.Module,
    rows: Callable[[int], slice],
    columns: slice,
    heads: int | None,
    fire: Fire,
) -> RemovableHandle:
    """Fire on some rows and columns of a projection's input.

    Args:
        module: The projection.
        rows: The token slice of a stream, given the length of the sequence.
        columns: The columns, without a step.
        heads: Show the columns as (head, d_head), or as they are.
        fire: The hooks.
    """

    def before(_module: nn.Module, args: tuple) -> tuple | None:
        given = args[0]
        at = rows(given.shape[1])
        part = given[:, at, columns]
        shown = part.unflatten(-1, (heads, -1)) if heads else part
        after = fire(shown)
        if after is shown:
            return None
        # With the strides of the original: kernels choose by them, and rows that nobody edited
        # would round differently.
        changed = torch.empty_strided(
            given.shape, given.stride(), dtype=given.dtype, device=given.device
        ).copy_(given)
        changed[:, at, columns] = after.flatten(-2) if heads else after
        return (changed, *args[1:])

    return module.register_forward_pre_hook(before)


def on_result(
    module: nn.Module,
    rows: Callable[[int], slice],
    width: int,
    heads: int,
    fire: Fire,
    note: Callable[[Tensor], None],
) -> RemovableHandle:
    """Fire on each head's own contribution to a projection's output (bias excluded).

    `note` is told what an edit added to the output.
    """

    def after(_module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        at = rows(output.shape[1])
        given = args[0][:, at]
        results = head_results(module, given, width, heads)
        changed = fire(results)
        if changed is results:
            return None
        out = output.clone()
        added = (changed - results).sum(-2).to(output.dtype)
        note(added)
        out[:, at] = output[:, at] + added
        return out

    return module.register_forward_hook(after)


def on_fused_outputs(
    module: nn.Module,
    projection: Projection,
    lengths: Callable[[], Mapping[str, int]],
    width: int,
    fires: Mapping[tuple[str, str], Fire],
    added: dict[str, Tensor],
    collect: Callable[[str, str, Tensor], None],
) -> RemovableHandle:
    """Split a fused projection's output into attention and MLP and fire on both.

    The attention's share has no bias, so the MLP's share carries it.

    Args:
        module: The fused projection.
        projection: Its description.
        lengths: Token counts of the running block.
        width: Number of columns that belong to the heads.
        fires: The hooks by (stream, sublayer).
        added: What edits of single heads added to the output, by stream.
        collect: Told every share as it stands after the hooks.
    """

    def after(_module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        out = output
        changes = dict(added)
        added.clear()
        for stream in projection.streams:
            at = stream_slice(projection.streams, stream, lengths(), output.shape[1])
            wanted = [sublayer for name, sublayer in fires if name == stream]
            if not wanted:
                continue
            attention = contribution(module, args[0][:, at], slice(0, width))
            attention = attention + changes[stream] if stream in changes else attention
            shares = {"attn": attention, "mlp": output[:, at] - attention}
            for sublayer in wanted:
                before = shares[sublayer]
                changed = fires[stream, sublayer](before)
                if changed is not before:
                    out = out.clone() if out is output else out
                    out[:, at] = out[:, at] + (changed - before)
                    shares[sublayer] = changed
            for sublayer, share in shares.items():
                collect(stream, sublayer, share)
        return None if out is output else out

    return module.register_forward_hook(after)


def head_results(module: nn.Module, given: Tensor, width: int, heads: int) -> Tensor:
    """Each head's own contribution to a projection's output.

    Returns:
        Axes batch, pos, head, d_model.
    """
    if is_plain(module, given):
        weight: Tensor = module.weight[:, :width].unflatten(1, (heads, -1))  # type: ignore[index]
        return torch.einsum("bphd,ohd->bpho", given[..., :width].unflatten(-1, (heads, -1)), weight)
    size = width // heads
    parts = [
        contribution(module, given, slice(head * size, (head + 1) * size)) for head in range(heads)
    ]
    return torch.stack(parts, -2)


def contribution(module: nn.Module, given: Tensor, columns: slice) -> Tensor:
    """What some input columns contribute to a projection's output, bias excluded.

    Weights may be out of reach in a hook (offloaded, quantised, cast layer by layer, adapted by
    LoRA): then the module's own forward is run on the columns alone and on zeros. For a linear map
    the difference is the contribution; activation-quantised layers give it approximately.
    """
    if is_plain(module, given):
        weight: Tensor = module.weight[:, columns]  # type: ignore[index]
        return F.linear(given[..., columns], weight)
    alone = torch.zeros_like(given)
    alone[..., columns] = given[..., columns]
    return module.forward(alone) - module.forward(torch.zeros_like(given[:1, :1]))


def is_plain(module: Any, given: Tensor) -> bool:
    """Whether a module is an ordinary linear layer with its weights at hand."""
    return (
        type(module) is nn.Linear
        # Quantised weights are subclasses of Tensor, which know a linear layer and little else.
        and type(module.weight) in (nn.Parameter, Tensor)
        and "forward" not in module.__dict__
        and module.weight.device == given.device
        and module.weight.dtype == given.dtype
        and not torch.is_autocast_enabled(given.device.type)
    )
