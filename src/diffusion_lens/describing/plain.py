"""A block's description as nested mappings, in which equal things look equal."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from diffusion_lens.architectures.spec import Attention, BlockSpec, Mlp, Stream
from diffusion_lens.describing.blocks import Reading


def as_compared(spec: BlockSpec, reading: Reading) -> dict[str, Any]:
    """A description as nested mappings in which equal things look equal."""
    return {
        "streams": {name: _stream(one, reading) for name, one in spec.streams.items()},
        "attentions": {one.name: _attention(one, reading) for one in spec.attentions},
        "order of attentions": [one.name for one in spec.attentions],
        "mlps": {name: _mlp(one) for name, one in spec.mlps.items()},
    }


def _mlp(mlp: Mlp) -> dict[str, Any]:
    found = _fields(mlp)
    del found["router"]  # an evaluation is not searched for it; the contract checks it
    return found


def _stream(stream: Stream, reading: Reading) -> dict[str, Any]:
    found = _fields(stream)
    if not stream.returned:
        del found["output"]
    if reading.precision != torch.float16:
        del found["clamped"]  # whatever is not float16 has no such bounds
    if stream.entrance is not None and reading.enters_unchanged(stream):
        found["entrance"] = None
    return found


def _attention(attention: Attention, reading: Reading) -> dict[str, Any]:
    found = _fields(attention)
    module = reading.call.module.get_submodule(attention.module)
    found["sizes"] = attention.head_sizes(module)
    found["outputs"] = {name: at for name, at in attention.outputs.items() if at is not None}
    if not attention.before_rope:
        del found["heads_first"], found["heads_joined"]
    return found


def _fields(value: Any) -> Any:
    """A dataclass as a mapping, and so on inward."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: _fields(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: _fields(one) for name, one in value.items()}
    if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
        return dict(enumerate(map(_fields, value)))
    return value


def unequal(at: str, said: Any, seen: Any) -> Iterator[tuple[str, Any, Any]]:
    """The places at which two of them differ, with what each says there."""
    if isinstance(said, Mapping) and isinstance(seen, Mapping):
        for name in dict.fromkeys((*said, *seen)):
            where = f"{at}.{name}" if at else str(name)
            yield from unequal(where, said.get(name), seen.get(name))
    elif said != seen:
        yield at, said, seen
