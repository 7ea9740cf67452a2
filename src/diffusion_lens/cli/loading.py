"""From arguments to a model, the settings of its call, and numbers."""

from __future__ import annotations

import copy
import inspect
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from diffusion_lens.border.ranges import LARGEST_SIZE
from diffusion_lens.cli.messages import fail
from diffusion_lens.cli.settings import pair, refuse_given_twice
from diffusion_lens.errors import DiffusionLensError, closest
from diffusion_lens.toys.loading import PREFIX, names

DIGITS = r"\d{1,18}"
"""Of a number that everything takes; Python refuses to read numbers of some thousand."""
MODELS = (
    "MODEL is a Hub id, a folder that `save_pretrained` wrote, or a toy model such as "
    f"{PREFIX}shapes-unet."
)
ALIKE = 0.7
"""From which likeness on a name is meant for a toy's."""


def load(model: str, *, device: str | None = None, torch_dtype: str | None = None) -> Any:
    """The model of a MODEL argument."""
    from diffusion_lens.hooked_diffusion import HookedDiffusion

    return _loaded(HookedDiffusion.from_pretrained, model, device, torch_dtype)


def load_pipeline(model: str, *, device: str | None = None, torch_dtype: str | None = None) -> Any:
    """The pipeline of a MODEL argument, whose denoiser need not be known."""
    from diffusers import DiffusionPipeline

    if is_toy(model):
        return load(model, device=device, torch_dtype=torch_dtype).pipe
    return _loaded(DiffusionPipeline.from_pretrained, model, device, torch_dtype)


def _loaded(
    loader: Callable[..., Any], model: str, device: str | None, torch_dtype: str | None
) -> Any:
    _refuse_what_is_nowhere(model)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

    import torch

    if is_toy(model):
        torch.set_num_threads(1)  # on matrices of this size threads only wait for each other
    dtype = None if torch_dtype is None else getattr(torch, torch_dtype)
    try:
        held = loader(model, torch_dtype=dtype)
    except DiffusionLensError:
        raise
    except Exception as error:  # loaders let through whatever a damaged file makes them stumble on
        reason = error if isinstance(error, OSError | ValueError) else repr(error)
        fail(f"cannot load {model!r}: {reason}\n{MODELS}")
    return held if device is None else held.to(device)


def _refuse_what_is_nowhere(model: str) -> None:
    """Refuse a toy's name alone, and a path that no folder has: the Hub would be asked for them."""
    if is_toy(model) or Path(model).is_dir():
        return
    if Path(model).is_file():
        fail(f"cannot load {model!r}: it is a file; give the folder that it lies in.\n{MODELS}")
    near = closest(model, names(), count=1, cutoff=ALIKE)
    if near and "/" not in model:
        fail(
            f"cannot load {model!r}: there is no such folder, and the toy models are called with "
            f"{PREFIX!r} in front. Closest: {PREFIX}{near[0]}; give that.\n{MODELS}"
        )
    if _is_path(model):
        fail(f"cannot load {model!r}: there is no such folder.\n{MODELS}")


def _is_path(model: str) -> bool:
    """Whether a name can only be meant for a folder: an id of the Hub has one slash inside."""
    return model.startswith((".", "/", "~")) or model.count("/") > 1 or "\\" in model


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
    from diffusion_lens.hooked_diffusion.generating import refuse_unknown_settings
    from diffusion_lens.hooked_diffusion.run import Run

    settings: dict[str, Any] = {}
    if is_toy(model):
        from diffusion_lens import toys

        settings |= toys.call_defaults(pipe)
    asked = dict(map(pair, given or []))
    options = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    named = {name: value for name, value in options.items() if value is not None}
    refuse_given_twice(named, asked)
    settings |= asked | named
    _refuse_half_a_size(settings)
    refuse_unknown_settings(pipe, Run(None, **settings))
    return settings


def _refuse_half_a_size(settings: Mapping[str, Any]) -> None:
    """Refuse a height without a width: some pipelines then leave out what was given, too."""
    given = [name for name in ("height", "width") if settings.get(name) is not None]
    if len(given) == 1:
        other = "width" if given == ["height"] else "height"
        fail(f"--set {given[0]}={settings[given[0]]} needs --set {other}=…; give both")


def step_count(pipe: Any, settings: Mapping[str, Any]) -> int | None:
    """How many steps a run will have; None where only the run itself knows."""
    parameters = inspect.signature(type(pipe).__call__).parameters
    if "strength" in parameters or "num_inference_steps" not in parameters:
        return None
    if any(settings.get(name) is not None for name in ("timesteps", "sigmas")):
        return None
    asked = settings.get("num_inference_steps", parameters["num_inference_steps"].default)
    scheduler = copy.deepcopy(pipe.scheduler)  # some take more steps than they are asked for
    more = {"mu": 0.0} if scheduler.config.get("use_dynamic_shifting") else {}
    try:
        scheduler.set_timesteps(asked, **more)
    except Exception:  # schedulers of other packages; the run will say what it has to say
        return None
    return len(scheduler.timesteps)


def whole_numbers(text: str | None, name: str) -> list[int] | slice | None:
    """`3`, `3,5` or `10:20` (ends may be left out) as `Site` takes them."""
    if text is None:
        return None
    if re.fullmatch(rf"\s*-?{DIGITS}(\s*,\s*-?{DIGITS})*\s*", text):
        numbers = [int(one) for one in text.split(",")]
        if len(set(numbers)) < len(numbers):
            fail(f"--{name} {text!r} names a number twice; give each once")
        return numbers
    if not re.fullmatch(rf"\s*({DIGITS})?\s*:\s*({DIGITS})?\s*(:\s*[1-9]\d{{0,8}}\s*)?", text):
        fail(f"--{name} {text!r} cannot be read; give numbers such as 3, 3,5 or 10:20")
    found = slice(*(int(end) if end.strip() else None for end in text.split(":")))
    if found.stop is not None and found.stop <= (found.start or 0):
        fail(f"--{name} {text!r} is empty: its end is left out, as in 10:20 for 10 to 19")
    return found


def listed_numbers(text: str | None, name: str) -> list[int] | None:
    """The same, where every number has to be known: a range needs its end."""
    found = whole_numbers(text, name)
    if not isinstance(found, slice):
        return found
    if found.stop is None:
        fail(f"--{name} {text!r} has no end; give one, such as 0:{(found.start or 0) + 8}")
    numbers = range(found.start or 0, found.stop, found.step or 1)
    if len(numbers) > LARGEST_SIZE:
        fail(f"--{name} {text!r} are {len(numbers):,} numbers; at most {LARGEST_SIZE:,} are taken")
    return list(numbers)


def seeds_of(text: str) -> int | list[int]:
    """Seeds as analyses take them: one number is how many."""
    found = listed_numbers(text, "seeds") or []
    return found[0] if found and "," not in text and ":" not in text else found


def text_of(file: Path) -> str:
    """A text file of the user's."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        fail(f"{file} is no text in UTF-8: {error}")


def prompts_in(file: Path, given: str) -> list[str]:
    """The prompts of a file, one in each line.

    Args:
        file: The file.
        given: What the user gave it as.
    """
    found = [line.strip() for line in text_of(file).splitlines() if line.strip()]
    return found or fail(f"{given} {file} holds no prompt; write one in each line")
