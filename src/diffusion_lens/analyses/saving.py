"""Writing a result to a folder and reading it back: tensors in one file, all else as JSON."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusion_lens.border import public
from diffusion_lens.errors import ResultError
from diffusion_lens.whole_files import whole_file

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

        Raises:
            ResultError: If `folder` is a file.
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
            ResultError: If no result, or one of another class or version, lies there; if a file is
                missing, cut short or changed; and if tensors and JSON are of different results.
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

    Raises:
        ResultError: If `folder` is a file.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ResultError(f"{path} cannot be made ({error}); give the name of a folder") from error
    tensors: dict[str, Tensor] = {}
    fields = {
        field.name: _encoded(getattr(result, field.name), field.name, tensors)
        for field in dataclasses.fields(result)
    }
    with whole_file(path / TENSORS) as file, whole_file(path / RESULT) as page:
        save_file(tensors, file)
        about = {"result": type(result).__name__, "tensors": _digest(file), "fields": fields}
        page.write_text(json.dumps(about, indent=1), encoding="utf-8")
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
        ResultError: If no result, or one of another class or with other fields, lies there; if a
            file is missing, cut short or changed; and if tensors and JSON are of different results.
    """
    path = Path(folder)
    about = read_about(path)
    found = about["result"]
    if found != cls.__name__:
        raise ResultError(f"{path} holds a {found}, not a {cls.__name__}; call {found}.load")
    known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if set(about["fields"]) != known:
        differ = sorted(set(about["fields"]) ^ known)
        raise ResultError(f"{path} was written by another version: the fields {differ} differ")
    try:
        named = set(_named(about["fields"]))
        tensors = _tensors(path, named, about.get("tensors"))
        return cls(**{name: _decoded(value, tensors) for name, value in about["fields"].items()})
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, ResultError):
            raise
        raise ResultError(
            f"{path / RESULT} holds a {found} of another form ({error!r}); save the result again"
        ) from error


def read_about(folder: Path) -> dict[str, Any]:
    """The JSON file of a saved result: its class, its fields, the digest of its tensors.

    Raises:
        ResultError: If it is missing, cut short, or something else.
    """
    page = folder / RESULT
    if not page.is_file():
        raise ResultError(
            f"no saved result in {folder}: there is no {RESULT}; `load` takes a folder that `save` "
            "wrote"
        )
    try:
        about = json.loads(page.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultError(
            f"{page} cannot be read ({error}); it was cut short or changed, save the result again"
        ) from error
    whole = isinstance(about, dict) and isinstance(about.get("fields"), dict)
    if not whole or not isinstance(about.get("result"), str):
        raise ResultError(f"{page} is no saved result; give a folder that `save` wrote")
    return about


def read_made_by(folder: Path) -> dict[str, Any]:
    """What made a saved result, as its field `made_by` says; the tensors are not read.

    Raises:
        ResultError: If it cannot be read.
    """
    made_by = read_about(folder)["fields"].get("made_by")
    try:
        found = _decoded(made_by, {})
    except (AttributeError, KeyError, TypeError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise ResultError(f"{folder / RESULT} does not say what made it; save the result again")
    return found


def _tensors(folder: Path, named: set[str], digest: str | None) -> dict[str, Tensor]:
    """The tensors of a saved result, if they are those that its JSON names."""
    file = folder / TENSORS
    try:
        # Results saved before digests were kept have none; their tensors are known by name alone.
        same = digest is None or _digest(file) == digest
        tensors = load_file(file) if same else {}
    except (SafetensorError, OSError) as error:
        raise ResultError(
            f"{file} cannot be read ({error}); it is missing or was cut short, save the result "
            "again"
        ) from error
    if not same or set(tensors) != named:
        raise ResultError(
            f"{file} and the {RESULT} beside it do not belong together: one of them was cut "
            "short or changed, or is of another result; save the result again"
        )
    return tensors


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return f"sha256:{hashlib.file_digest(opened, 'sha256').hexdigest()}"


def _named(value: Any) -> Iterator[str]:
    """The names of the tensors that encoded values hold."""
    if isinstance(value, dict):
        for kind, held in value.items():
            if kind in ("tensor", "array", "image") and isinstance(held, str):
                yield held
            else:
                yield from _named(held)
    elif isinstance(value, list):
        for one in value:
            yield from _named(one)


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
    if kind not in ("tuple", "list"):
        raise ValueError(f"{kind!r} is no kind of value")
    items = [_decoded(one, tensors) for one in held]
    return tuple(items) if kind == "tuple" else items
