"""Writing a result to a folder and reading it back: tensors in one file, all else as JSON."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusion_lens.border import public
from diffusion_lens.errors import ResultError

TENSORS = "tensors.safetensors"
RESULT = "result.json"

Result = TypeVar("Result")


class Saved:
    """What every result, a dataclass, can do: write itself to a folder and come back from it."""

    @public
    def save(self, folder: str | Path) -> Path:
        """Write the result: tensors in one file, all else as JSON.

        Args:
            folder: Where to; it is made if need be.

        Returns:
            The folder.
        """
        return save_fields(self, folder)

    @classmethod
    @public
    def load(cls: type[Result], folder: str | Path) -> Result:
        """Read what `save` wrote.

        Args:
            folder: Where it lies.

        Returns:
            The result; tensors are on the CPU.

        Raises:
            ResultError: If no result, or one of another class or version, lies there.
        """
        return load_fields(cls, folder)


@public
def save_fields(result: Any, folder: str | Path) -> Path:
    """Write every field of a result.

    Args:
        result: A dataclass instance. Its fields hold tensors, numpy arrays, images, numbers, texts,
            None, and lists, tuples and dicts of these; what is none of them is kept as its `repr`.
        folder: Where to write; it is made if need be, and what `save_fields` wrote there before is
            replaced.

    Returns:
        The folder.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    fields = {
        field.name: _encoded(getattr(result, field.name), field.name, tensors)
        for field in dataclasses.fields(result)
    }
    save_file(tensors, path / TENSORS)
    about = {"result": type(result).__name__, "fields": fields}
    (path / RESULT).write_text(json.dumps(about, indent=1), encoding="utf-8")
    return path


@public
def load_fields(cls: type[Result], folder: str | Path) -> Result:
    """Read what `save_fields` wrote of a result of this class.

    Args:
        cls: The dataclass.
        folder: Where it lies.

    Returns:
        The result; tensors are on the CPU.

    Raises:
        ResultError: If no result, or one of another class or with other fields, lies there.
    """
    path = Path(folder)
    if not (path / RESULT).is_file():
        raise ResultError(f"no saved result in {path}: there is no {RESULT}")
    about = json.loads((path / RESULT).read_text(encoding="utf-8"))
    found = about.get("result")
    if found != cls.__name__:
        raise ResultError(f"{path} holds a {found}, not a {cls.__name__}; call {found}.load")
    known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if set(about["fields"]) != known:
        differ = sorted(set(about["fields"]) ^ known)
        raise ResultError(f"{path} was written by another version: the fields {differ} differ")
    tensors = load_file(path / TENSORS)
    return cls(**{name: _decoded(value, tensors) for name, value in about["fields"].items()})


def _encoded(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON has it; its tensors go into `tensors` under names that begin with `name`."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, np.ndarray):
        tensors[name] = torch.from_numpy(np.ascontiguousarray(value))
        return {"array": name}
    if isinstance(value, Image.Image):
        tensors[name] = torch.from_numpy(np.array(value.convert("RGB")))
        return {"image": name}
    if isinstance(value, tuple | list):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_encoded(one, f"{name}.{i}", tensors) for i, one in enumerate(value)]}
    if isinstance(value, dict):
        return {
            "dict": [
                [_encoded(key, f"{name}.key{i}", tensors), _encoded(one, f"{name}.{i}", tensors)]
                for i, (key, one) in enumerate(value.items())
            ]
        }
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return repr(value)


def _decoded(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, held),) = value.items()
    if kind == "tensor":
        return tensors[held]
    if kind == "array":
        return tensors[held].numpy()
    if kind == "image":
        return Image.fromarray(tensors[held].numpy())
    if kind == "dict":
        return {_decoded(key, tensors): _decoded(one, tensors) for key, one in held}
    items = [_decoded(one, tensors) for one in held]
    return tuple(items) if kind == "tuple" else items
