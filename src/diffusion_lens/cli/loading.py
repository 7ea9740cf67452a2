"""From arguments to a model, the settings of its call, and numbers."""

from __future__ import annotations

import json
import os
import re
from typing import Any

from diffusion_lens.cli.messages import fail
from diffusion_lens.toys.loading import PREFIX


def load(model: str, *, device: str | None = None, torch_dtype: str | None = None) -> Any:
    """The model of a MODEL argument."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    dtype = None if torch_dtype is None else _dtype(torch_dtype)

    from diffusion_lens.hooked_diffusion import HookedDiffusion

    if is_toy(model):
        import torch

        torch.set_num_threads(1)  # on matrices of this size threads only wait for each other
    try:
        held = HookedDiffusion.from_pretrained(model, torch_dtype=dtype)
    except (OSError, ValueError) as error:
        fail(
            f"cannot load {model!r}: {error}\nMODEL is a Hub id, a folder that "
            f"`save_pretrained` wrote, or a toy model such as {PREFIX}shapes-unet."
        )
    return held if device is None else held.to(device)


def is_toy(model: str) -> bool:
    """Whether a MODEL argument names a shipped toy model."""
    return model.startswith(PREFIX)


def settings_of(
    model: str,
    pipe: Any,
    given: list[str] | None,
    *,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
) -> dict[str, Any]:
    """Arguments of the pipeline's call: what suits a toy model, then what was given."""
    settings: dict[str, Any] = {}
    if is_toy(model):
        from diffusion_lens import toys

        settings |= toys.call_defaults(pipe)
    settings |= dict(map(_setting, given or []))
    named = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    return settings | {name: value for name, value in named.items() if value is not None}


def whole_numbers(text: str | None, name: str) -> list[int] | slice | None:
    """`3`, `3,5` or `10:20` (ends may be left out) as `Site` takes them."""
    if text is None:
        return None
    if re.fullmatch(r"\s*-?\d+(\s*,\s*-?\d+)*\s*", text):
        return [int(one) for one in text.split(",")]
    if not re.fullmatch(r"\s*\d*\s*:\s*\d*\s*(:\s*[1-9]\d*\s*)?", text):
        fail(f"--{name} {text!r} cannot be read; give numbers such as 3, 3,5 or 10:20")
    return slice(*(int(end) if end.strip() else None for end in text.split(":")))


def listed_numbers(text: str | None, name: str) -> list[int] | None:
    """The same, where every number has to be known: a range needs its end."""
    found = whole_numbers(text, name)
    if not isinstance(found, slice):
        return found
    if found.stop is None:
        fail(f"--{name} {text!r} has no end; give one, such as 0:{(found.start or 0) + 8}")
    return list(range(found.start or 0, found.stop, found.step or 1))


def seeds_of(text: str) -> int | list[int] | None:
    """Seeds as analyses take them: one number is how many."""
    found = listed_numbers(text, "seeds")
    return found[0] if found and "," not in text and ":" not in text else found


def _setting(given: str) -> tuple[str, Any]:
    """A `NAME=VALUE` argument; a value that is no json is text."""
    name, equals, value = given.partition("=")
    if not equals or not name.isidentifier():
        fail(f"--set {given!r} is not of the form NAME=VALUE, such as --set height=512")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _dtype(name: str) -> Any:
    if name not in ("float32", "bfloat16", "float16"):
        fail(f"--torch-dtype {name!r} is unknown; give float32, bfloat16 or float16")
    import torch

    return getattr(torch, name)
