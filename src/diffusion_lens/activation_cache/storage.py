"""Saved caches: one safetensors file and one json file in a folder. Nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from diffusion_lens.errors import CacheFileError

if TYPE_CHECKING:
    from diffusion_lens.activation_cache.cache import ActivationCache, Part

FORMAT = "diffusion_lens.ActivationCache"
VERSION = 1
TENSORS = "activations.safetensors"
INDEX = "index.json"
PART = ".part"
"""What the name of a file ends with until it is whole."""


def save(cache: ActivationCache, folder: Path) -> Path:
    """Write a cache into a folder.

    Raises:
        CacheFileError: If the folder holds other files.
    """
    make(folder)
    known = (TENSORS, INDEX, TENSORS + PART, INDEX + PART)
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in known)
    if foreign:
        raise CacheFileError(
            f"{folder} holds other files ({foreign[0]}, …); save into a new folder"
        )
    tensors, places = {}, []
    for (name, branch), steps in cache.entries.items():
        for step, value in steps.items():
            key = str(len(places))
            tensors[key] = value.detach().contiguous().clone()
            places.append([name, branch, step])
    index = index_of(cache, places)
    # Beside, then renamed: what is cut short leaves the cache that was here.
    save_file(tensors, folder / (TENSORS + PART), metadata={"index": _digest(_text(index))})
    (folder / (TENSORS + PART)).replace(folder / TENSORS)
    write_index(folder, index)
    return folder


def make(folder: Path) -> None:
    """Make a folder, if it is missing.

    Raises:
        CacheFileError: If it, or what it lies in, is a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise CacheFileError(f"{folder} is a file; save into a new folder") from error


def index_of(cache: ActivationCache, places: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """What the json file says: all but the tensors."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "entries": places,
        "axes": {name: list(axes) for name, axes in cache.axes.items()},
        "times": {str(step): float(time) for step, time in cache.times.items()},
        "parts": {name: _listed(part) for name, part in cache.parts.items()},
        "sizes": cache.sizes,
        "info": cache.info,
    }


def write_index(folder: Path, index: Mapping[str, Any]) -> None:
    """Write the json file, whole or not at all."""
    (folder / (INDEX + PART)).write_text(_text(index), encoding="utf-8")
    (folder / (INDEX + PART)).replace(folder / INDEX)


def _text(index: Mapping[str, Any]) -> str:
    return json.dumps(index, default=str)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def load(folder: Path, *, device: str) -> dict[str, Any]:
    """Read the arguments of `ActivationCache` from a folder.

    Raises:
        CacheFileError: If files are missing, cut short, or something else.
    """
    index = read_index(folder)
    if index.get("spooled"):
        return _spooled(folder, index, device)
    try:
        tensors = load_file(folder / TENSORS, device=device)
        with safe_open(folder / TENSORS, "pt") as file:
            digest = (file.metadata() or {}).get("index")
    except (SafetensorError, OSError) as error:
        raise CacheFileError(
            f"{folder / TENSORS} cannot be read ({error}); it is missing or was cut short, save "
            "the cache again"
        ) from error
    if digest not in (None, _digest((folder / INDEX).read_text(encoding="utf-8"))):
        raise CacheFileError(
            f"{folder / INDEX} and {folder / TENSORS} are of two caches, or saving was cut short; "
            "save the cache again"
        )
    try:
        return _contents(folder, index, tensors)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CacheFileError(
            f"{folder} holds an index of another form ({error!r}); save the cache again"
        ) from error


def _contents(folder: Path, index: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    if len(tensors) != len(index["entries"]):
        raise CacheFileError(
            f"{folder} holds {len(tensors)} tensors where its index names {len(index['entries'])}; "
            "the two files do not belong together"
        )
    places = [(*place, tensors[str(number)]) for number, place in enumerate(index["entries"])]
    return _arguments(index, places)


def _spooled(folder: Path, index: dict[str, Any], device: str) -> dict[str, Any]:
    """What a run with `spool=` left: one file for each tensor."""
    path = folder
    try:
        places = []
        for name, branch, step, file in index["entries"]:
            if Path(file).name != file:
                raise ValueError(f"{file!r} lies in another folder")
            path = folder / file
            with safe_open(path, "pt", device=device) as opened:
                places.append((name, branch, step, opened.get_tensor("value")))
        return _arguments(index, places)
    except (SafetensorError, OSError) as error:
        raise CacheFileError(
            f"{path} cannot be read ({error}); a spooled cache needs every file of its folder: "
            "run it again"
        ) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CacheFileError(
            f"{folder} holds an index of another form ({error!r}); run it again"
        ) from error


def _arguments(index: dict[str, Any], places: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
    """The arguments of `ActivationCache`, from (name, branch, step, tensor) places."""
    entries: dict[tuple[str, str], dict[int, Any]] = {}
    for name, branch, step, tensor in places:
        steps = entries.setdefault((name, branch), {})
        if int(step) in steps:
            raise ValueError(f"{name} of branch {branch} at step {step} is named twice")
        steps[int(step)] = tensor
    return {
        "entries": entries,
        "axes": {name: tuple(axes) for name, axes in index["axes"].items()},
        "times": {int(step): float(time) for step, time in index["times"].items()},
        "parts": {name: _part(listed) for name, listed in index["parts"].items()},
        "sizes": {
            name: {axis: int(length) for axis, length in lengths.items()}
            for name, lengths in index.get("sizes", {}).items()
        },
        "info": dict(index["info"]),
    }


def _listed(part: Part) -> list[list[Any]]:
    """A part for json: an index is a list, a slice a mapping."""
    return [
        [dim, {"slice": [at.start, at.stop, at.step]} if isinstance(at, slice) else list(at)]
        for dim, at in part
    ]


def _part(listed: list[list[Any]]) -> Part:
    return tuple((int(dim), _index(at)) for dim, at in listed)


def _index(listed: Any) -> slice | tuple[int, ...]:
    if not isinstance(listed, dict):
        return tuple(map(int, listed))
    start, stop, step = (None if end is None else int(end) for end in listed["slice"])
    return slice(start, stop, step)


def read_index(folder: Path) -> dict[str, Any]:
    """The json file of a saved cache.

    Raises:
        CacheFileError: If it is missing, unreadable, or of another kind or version.
    """
    path = folder / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CacheFileError(
            f"{path} cannot be read ({error}); is {folder} a folder written by `cache.save`?"
        ) from error
    if isinstance(index, dict) and index.get("spooled") is False:
        raise CacheFileError(
            f"{folder} holds a spooled cache whose run was killed before it ended: nothing says "
            "which file is what; run it again, into a new folder"
        )
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise CacheFileError(f"{path} is no index of an activation cache")
    missing = [key for key in ("entries", "axes", "times", "parts", "info") if key not in index]
    if index.get("version") == VERSION and missing:
        raise CacheFileError(f"{path} has no {missing[0]!r}; save the cache again")
    if index.get("version") != VERSION:
        raise CacheFileError(
            f"{folder} has version {index.get('version')}, this library reads version {VERSION}"
        )
    return index
