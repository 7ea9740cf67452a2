"""The golden pipelines: tiny, untrained, with what the unmodified pipelines gave elsewhere."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from safetensors.torch import load_file
from torch import Tensor
from torch.overrides import _get_current_function_mode_stack

FOLDER = Path(__file__).parent / "golden"
FAMILIES = ("sd", "sdxl", "sd3", "sd35", "flux")
PLAIN = (
    ("sd", "plain"),
    ("sd", "plain_cfg1"),
    ("sdxl", "plain"),
    ("sd3", "plain"),
    ("sd3", "plain_cfg"),
    ("sd35", "plain"),
    ("sd35", "plain_cfg"),
    ("flux", "plain"),
    ("cogvideox", "plain"),
)
GUIDED = {"sd": 7.5, "sdxl": 5.0, "sd3": 4.5, "sd35": 4.5, "cogvideox": 6.0}
"""Guidance scales at which a family batches an unconditional branch."""


@dataclass(frozen=True)
class Golden:
    """One golden folder."""

    name: str
    cases: dict[str, dict[str, Any]]
    inputs: dict[str, Tensor]
    expected: dict[str, Tensor]

    def settings(self, case: str = "plain", **more: Any) -> dict[str, Any]:
        """The arguments of a plain case, its latents among them."""
        given = {key: value for key, value in self.cases[case].items() if key != "scheduler"}
        return {**given, "latents": self.inputs["latents"], **more}


@functools.cache
def golden(name: str) -> Golden:
    folder = FOLDER / name
    return Golden(
        name,
        json.loads((folder / "inputs.json").read_text(encoding="utf-8"))["cases"],
        load_file(folder / "inputs.safetensors"),
        load_file(folder / "expected.safetensors"),
    )


def fresh_pipe(name: str) -> Any:
    """A pipeline of its own, for tests that change it."""
    from diffusers import DiffusionPipeline

    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        pipe = DiffusionPipeline.from_pretrained(FOLDER / name / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@functools.cache
def shared_pipe(name: str) -> Any:
    """A pipeline that tests share and must leave as it was."""
    return fresh_pipe(name)


def short(name: str, *, guided: bool = True, steps: int = 2, **more: Any) -> dict[str, Any]:
    """Arguments of a short run that gives latents, guided where the family batches branches."""
    settings = golden(name).settings(num_inference_steps=steps, output_type="latent")
    if name in GUIDED:
        settings["guidance_scale"] = GUIDED[name] if guided else 0.0
    return {**settings, **more}


def modules_of(pipe: Any) -> list[torch.nn.Module]:
    """Every module of a pipeline or of a bare denoiser."""
    if isinstance(pipe, torch.nn.Module):
        return list(pipe.modules())
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    return [module for part in parts for module in part.modules()]


def traces(pipe: Any) -> dict[str, Any]:
    """Everything that an attached hook would leave behind: torch hooks, attributes, modes."""
    owners = [] if isinstance(pipe, torch.nn.Module) else [pipe, pipe.scheduler]
    modules = modules_of(pipe)
    return {
        "torch hooks": sum(
            len(module._forward_hooks)
            + len(module._forward_pre_hooks)
            + len(module._backward_hooks)
            + len(module._backward_pre_hooks)
            for module in modules
        ),
        "attributes": sorted(
            f"{type(owner).__name__}.{name}"
            for owner in [*owners, *modules]
            for name, value in vars(owner).items()
            if callable(value) and hasattr(value, "__wrapped__")
        ),
        "processors": [
            dict(vars(module.processor)) for module in modules if hasattr(module, "processor")
        ],
        "modes": len(_get_current_function_mode_stack()),
        "stance": repr(torch._dynamo.eval_frame._stance),
        "gradients": torch.is_grad_enabled(),
    }


def latents_of(out: Any) -> Tensor:
    """The latents of an output that must have some."""
    assert out.latents is not None
    return out.latents


@functools.cache
def evaluation_of(name: str) -> dict[str, Any]:
    """The arguments of the first denoiser call of a short guided run."""
    pipe, found = shared_pipe(name), {}
    denoiser = getattr(pipe, "unet", None) or pipe.transformer

    def keep(_module: torch.nn.Module, _args: tuple, kwargs: dict) -> None:
        found.setdefault("kwargs", dict(kwargs))
        found.setdefault("args", _args)

    handle = denoiser.register_forward_pre_hook(keep, with_kwargs=True)
    pipe(**short(name, steps=1))
    handle.remove()
    names = ("sample", "timestep")
    return dict(zip(names, found["args"], strict=False)) | found["kwargs"]


def branches_of(name: str) -> tuple[str, ...]:
    """What the batch of `evaluation_of` holds."""
    return ("uncond", "cond") if name in GUIDED else ("cond",)


def evaluate(model: Any, name: str, *hooks: Any, **more: Any) -> Tensor:
    """One call of the bare denoiser with hooks on."""
    given = evaluation_of(name)  # before any hook is on: the first call runs the pipeline
    with torch.no_grad(), model.hooks(hooks, branches=branches_of(name)):
        return model.denoiser(**{**given, **more})[0]


def kinds_of(model: Any, *, scheduler: bool = False) -> list[str]:
    """One living hook point for every distinct name after the block's prefix."""
    found = {}
    for name, point in model.points.items():
        if point.dead is None and (scheduler or point.module != "scheduler"):
            found[re.sub(r"\d+", "*", name), point.module.startswith("single_")] = name
    return list(found.values())
