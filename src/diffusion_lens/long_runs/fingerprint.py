"""What a long computation depends on, so that no other one goes on from what it left on disk."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from diffusion_lens import HookedDiffusion, Run
from diffusion_lens.authoring import versions
from diffusion_lens.errors import DiffusionLensError, listing
from diffusion_lens.long_runs.telling import digest, told, weights_told

LONGEST = 200
"""Characters of an entry that are kept as they are; longer ones end in a digest."""

SHOWN = 60
PLACE_AND_DATE = ("_name_or_path", "_diffusers_version", "transformers_version")
"""What configurations say of where they were read from, and by which version saved."""


def fingerprint(model: HookedDiffusion, run: Run | None, **what: Any) -> dict[str, str]:
    """What numbers made with a model depend on, entry by entry, as text.

    Two fingerprints are equal if model, run and what else was named are: classes, configurations,
    weights, precision and adapters of every network of the pipeline, the scheduler with its
    configuration, hooks that are open, prompts and settings in full, kind of device, versions.
    Where the weights were read from is no part of it.

    Args:
        model: The model.
        run: Prompts, seeds and settings; None where `what` holds them.
        **what: Whatever else matters. Runs and mappings get an entry for each of their parts.
    """
    found = dict(_model_told(model))
    for name, value in {"run": run, **what}.items():
        if isinstance(value, Mapping):  # the order of concepts is that of columns
            found[name] = json.dumps([str(key) for key in value])
        found |= _entries(name, value)
    return {name: _shortened(text) for name, text in found.items()}


def refuse_other(
    found: Any, wanted: Mapping[str, str], *, folder: object, error: type[DiffusionLensError]
) -> None:
    """Refuse to go on from what another computation left.

    Args:
        found: Its fingerprint, as read back.
        wanted: The fingerprint of this one.
        folder: Where the former lies.
        error: What to raise.

    Raises:
        error: If they differ, with the entries that do.
    """
    before = found if isinstance(found, Mapping) else {}
    names = [name for name in {**wanted, **before} if before.get(name) != wanted.get(name)]
    if names:
        differ = [f"{name} ({_apart(before.get(name), wanted.get(name))})" for name in names]
        raise error(
            f"{folder} holds what another run left. Different: {listing(differ, most=5)}. Give "
            "another folder, or remove this one to begin anew"
        )


def _model_told(model: HookedDiffusion) -> Iterator[tuple[str, str]]:
    pipe = model.pipe
    python = ".".join(platform.python_version_tuple()[:2])  # functions are told by its bytecode
    yield from _entries("version", {**versions(), "python": python}).items()
    yield "device", model.device.type
    # An edit by a hook that is open changes every number.
    hooks = [[str(one.site), one.backward, one.fn] for one in model.registrations]
    yield "open hooks", f"{len(hooks)} {digest(hooks)}"
    if pipe is None:
        yield from _part_told("denoiser", model.denoiser)
        return
    yield "pipeline", type(pipe).__name__
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module) or hasattr(part, "config"):
            yield from _part_told(name, part)
        elif part is not None:
            words = hasattr(part, "model_max_length") and hasattr(part, "__len__")
            sizes = f", {len(part)} tokens, prompts of {part.model_max_length}" if words else ""
            yield name, f"{type(part).__name__}{sizes}"


def _part_told(name: str, part: Any) -> Iterator[tuple[str, str]]:
    yield name, type(part).__name__
    if isinstance(part, nn.Module):
        yield f"{name}.dtype", str(getattr(part, "dtype", None))
        yield f"{name}.config", digest(sorted(_config(part).items(), key=str))
        yield f"{name}.weights", weights_told(part)
        return
    yield from _entries(name, _config(part)).items()
    if hasattr(part, "shift"):  # set_shift changes it and leaves the configuration alone
        yield f"{name}.present shift", str(part.shift)


def _config(part: Any) -> dict[str, Any]:
    config: Any = getattr(part, "config", {})
    given = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return {name: value for name, value in given.items() if name not in PLACE_AND_DATE}


def _entries(name: str, value: Any) -> dict[str, str]:
    """A value as entries; runs and mappings part by part."""
    if isinstance(value, Run):
        value = {"prompt": value.prompt, "seed": value.seed, **value.settings}
    if isinstance(value, Mapping):
        return {f"{name}.{key}": json.dumps(told(one)) for key, one in value.items()}
    return {name: json.dumps(told(value))}


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… sha256 {digest(text)}"


def _apart(before: str | None, now: str | None) -> str:
    """Two texts from where they differ."""
    if before is None or now is None:
        return "not said there" if before is None else "not said now"
    both = zip(before, now, strict=False)
    place = next((at for at, (one, other) in enumerate(both) if one != other), 0)
    start = max(0, place - SHOWN // 3)
    ends = [f"{'…' if start else ''}{text[start : start + SHOWN]}" for text in (before, now)]
    return f"{ends[0]} there, {ends[1]} now"
