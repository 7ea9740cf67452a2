"""Values told as text: the same text in every process, another text for another value."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Set
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor, nn

from diffusion_lens import HookedDiffusion, Run

DEEPEST = 6
"""How far objects that hold objects are followed; below, their class stands for them."""

ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
WHOLE_NUMBERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
WIDEST = 8
"""Bytes that are summed at once; four weights of half precision take no longer than one."""

SWITCHES = (
    *("training", "processor", "scaling", "_active_adapter", "_disable_adapters"),
    *("merged_adapters", "s1", "s2", "b1", "b2"),
)
"""Attributes of modules that change what they compute and are no weights: adapters, FreeU."""


def told(value: Any, *, depth: int = DEEPEST) -> Any:
    """A value as json has it.

    Tensors, arrays and images are told by a digest of their bytes, functions by their code and
    what it closes over, objects by their class and attributes. What a function reads from its
    module's globals is not told.

    Args:
        value: Anything.
        depth: How far objects that hold objects are followed.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    leaf = _leaf(value)
    if leaf is not None:
        return leaf
    if depth == 0:
        return _named(type(value))
    inner: Callable[[Any], Any] = partial(told, depth=depth - 1)
    if isinstance(value, Mapping):
        return {"dict": [[inner(key), inner(one)] for key, one in value.items()]}
    if isinstance(value, Set):
        return {"set": sorted(json.dumps(inner(one)) for one in value)}
    if isinstance(value, list | tuple):
        return [inner(one) for one in value]
    return _call(value, inner)


def digest(*values: Any) -> str:
    """A short digest of values."""
    return _sha(json.dumps(told(list(values))).encode())


def weights_told(module: nn.Module) -> str:
    """A module's weights and adapter switches by a digest.

    Cheap enough for billions of parameters: each weight counts with checksums of the bits of its
    rows and of its columns.
    """
    found = hashlib.sha256()
    for path, part in module.named_modules():
        # Caches that a run fills are buffers that are not saved; so no one else's are told.
        unsaved = part._non_persistent_buffers_set
        for name, weight in sorted({**part._parameters, **part._buffers}.items()):
            if weight is None or name in unsaved:
                continue
            for one in _plain_tensors(_at_hand(part, name, weight)):
                head = f"{path}.{name} {tuple(one.shape)} {one.dtype}"
                found.update(head.encode() + _checksums(one))
        switches = {name: vars(part)[name] for name in SWITCHES if name in vars(part)}
        found.update(json.dumps(told(switches)).encode())
    return f"sha256 {found.hexdigest()[:16]}"


def _leaf(value: Any) -> Any:
    """What a value that holds no others is told as; None for others."""
    if isinstance(value, Tensor):
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        kind = str(value.dtype).removeprefix("torch.")
        return f"tensor {tuple(value.shape)} {kind} sha256 {_sha(raw.tobytes())}"
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype != object:
        return f"array {value.shape} {value.dtype} sha256 {_sha(value.tobytes())}"
    if isinstance(value, Image.Image):
        return f"image {value.size} {value.mode} sha256 {_sha(value.tobytes())}"
    if isinstance(value, torch.Generator):
        return f"generator {told(value.get_state())}"
    if isinstance(value, HookedDiffusion):
        return f"HookedDiffusion {_parts_told(value.pipe or value.denoiser)}"
    if isinstance(value, DiffusionPipeline):
        return f"{_named(type(value))} {_parts_told(value)}"
    if isinstance(value, nn.Module):
        return f"{_named(type(value))} {weights_told(value)}"
    if isinstance(value, CodeType):
        return f"code {digest(value.co_code.hex(), value.co_names, *value.co_consts)}"
    return _named(value) if isinstance(value, type) else None


def _parts_told(model: Any) -> str:
    """The networks and the scheduler of a pipeline, or a network."""
    if isinstance(model, nn.Module):
        return weights_told(model)
    networks = {
        name: part for name, part in model.components.items() if isinstance(part, nn.Module)
    }
    scheduler = getattr(model, "scheduler", None)
    return digest(networks, scheduler and [_named(type(scheduler)), dict(scheduler.config)])


def _call(value: Any, inner: Callable[[Any], Any]) -> str:
    """A function or object as text in the form of a call."""
    if getattr(value, "__border__", False):  # the checks are made at the first call
        return inner(value.__wrapped__)
    if isinstance(value, FunctionType):
        cells = [_content(cell) for cell in value.__closure__ or ()]
        what = [value.__code__, value.__defaults__, value.__kwdefaults__, *cells]
        return f"{_named(value)} sha256 {_sha(json.dumps([inner(one) for one in what]).encode())}"
    if isinstance(value, MethodType):
        return f"{inner(value.__self__)}.{inner(value.__func__)}"
    if isinstance(value, partial):
        name, given = inner(value.func), value.keywords
        shown = [str(inner(one)) for one in value.args]
    elif isinstance(value, Run):
        name, shown = "Run", [str(inner(value.prompt))]
        given = {"seed": value.seed, **value.settings}
    elif dataclasses.is_dataclass(value):
        name, shown = _named(type(value)), []
        given = {one.name: getattr(value, one.name) for one in dataclasses.fields(value)}
    elif getattr(value, "__dict__", None):
        name, shown, given = _named(type(value)), [], vars(value)
    else:
        return ADDRESS.sub("", repr(value))
    shown += [f"{key}={inner(one)}" for key, one in given.items()]
    return f"{name}({', '.join(shown)})"


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that is not bound yet
        return None


def _named(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _sha(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()[:16]


def _at_hand(module: nn.Module, name: str, value: Tensor) -> Tensor:
    """A weight; where accelerate keeps it elsewhere while it is not needed, from there."""
    kept = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
    return kept[name] if value.is_meta and kept is not None else value


def _plain_tensors(value: Tensor) -> Iterator[Tensor]:
    """The tensors that a quantised one is made of; others are their own."""
    flatten = getattr(value, "__tensor_flatten__", None)
    if flatten is None:
        yield value.detach()
        return
    for name in flatten()[0]:
        yield from _plain_tensors(getattr(value, name))


@torch.no_grad()
def _checksums(value: Tensor) -> bytes:
    """For each row and each few columns the sum of their bits read as whole numbers."""
    if value.is_meta or not value.numel():
        return b""
    value = torch.view_as_real(value) if value.is_complex() else value
    rows = value.reshape(value.shape[0] if value.ndim else 1, -1).contiguous()
    if rows.storage_offset() * rows.element_size() % WIDEST:
        rows = rows.clone()
    wide = rows.shape[1] * rows.element_size() % WIDEST == 0
    bits = rows.view(WHOLE_NUMBERS[WIDEST if wide else rows.element_size()])
    sums = [bits.sum(dim, dtype=torch.int64) for dim in (0, 1)]
    return torch.cat(sums).cpu().numpy().tobytes()
