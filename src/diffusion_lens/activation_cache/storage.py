"""Saved caches: one safetensors file and one json file in a folder. Nothing is ever unpickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from diffusion_lens.errors import CacheFileError

if TYPE_CHECKING:
    from diffusion_lens.activation_cache.cache import ActivationCache, Part

FORMAT = "diffusion_lens.ActivationCache"
VERSION = 1
TENSORS = "activations.safetensors"
INDEX = "index.json"


def save(cache: ActivationCache, folder: Path) -> Path:
    """Write a cache into a folder.

    Raises:
        CacheFileError: If the folder holds other files.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise CacheFileError(f"{folder} is a file; save into a new folder") from error
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in (TENSORS, INDEX))
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
    index = {
        "format": FORMAT,
        "version": VERSION,
        "entries": places,
        "axes": {name: list(axes) for name, axes in cache.axes.items()},
        "times": {str(step): float(time) for step, time in cache.times.items()},
        "parts": {name: _listed(part) for name, part in cache.parts.items()},
        "info": cache.info,
    }
    save_file(tensors, folder / TENSORS)
    (folder / INDEX).write_text(json.dumps(index, default=str), encoding="utf-8")
    return folder


def load(folder: Path, *, device: str) -> dict[str, Any]:
    """Read the arguments of `ActivationCache` from a folder.

    Raises:
        CacheFileError: If files are missing, cut short, or something else.
    """
    index = read_index(folder)
    try:
        tensors = load_file(folder / TENSORS, device=device)
    except (SafetensorError, OSError) as error:
        raise CacheFileError(
            f"{folder / TENSORS} cannot be read ({error}); it is missing or was cut short, save "
            "the cache again"
        ) from error
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
    entries: dict[tuple[str, str], dict[int, Any]] = {}
    for number, (name, branch, step) in enumerate(index["entries"]):
        steps = entries.setdefault((name, branch), {})
        if int(step) in steps:
            raise ValueError(f"{name} of branch {branch} at step {step} is named twice")
        steps[int(step)] = tensors[str(number)]
    return {
        "entries": entries,
        "axes": {name: tuple(axes) for name, axes in index["axes"].items()},
        "times": {int(step): float(time) for step, time in index["times"].items()},
        "parts": {name: _part(listed) for name, listed in index["parts"].items()},
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
