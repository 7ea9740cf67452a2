"""Running a pipeline: checked settings, noise by seeds, the final latents, what made the result."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from diffusion_lens.engine.guiders import begin_anew, guiders_of
from diffusion_lens.engine.modular import call_settings, is_modular, loops_of
from diffusion_lens.engine.observing import observed
from diffusion_lens.engine.step_noise import seeded_steps
from diffusion_lens.engine.wiring import Wiring
from diffusion_lens.errors import RunError, UnknownSettingError, closest, listing
from diffusion_lens.hooked_diffusion.images import without_condition
from diffusion_lens.hooked_diffusion.output import Output, provenance
from diffusion_lens.hooked_diffusion.report import Report
from diffusion_lens.hooked_diffusion.run import DEFAULT_SEED, Run, as_taken, generators

DEPRECATED = ("callback", "callback_steps")
"""Arguments that pipelines still take without listing them."""


def generate(wiring: Wiring, run: Run, *, model: str, dtype: torch.dtype) -> Output:
    """One call of the pipeline, with whatever hooks are on.

    Args:
        wiring: The model.
        run: What to run.
        model: What the model is called in the result.
        dtype: Precision of the denoiser.

    Raises:
        RunError: If the pipeline does not take a setting.
    """
    pipe: Any = wiring.pipe
    refuse_unknown_settings(pipe, run)
    settings = dict(run.settings)
    seeds: list[int] = []
    steps: Any = contextlib.nullcontext()
    if "generator" not in settings and "generator" in call_settings(pipe):
        seeds = run.seeds()
        own = generators(seeds)
        settings["generator"] = as_taken(pipe, own)
        steps = seeded_steps(pipe, own)
    prompt = list(run.prompt) if isinstance(run.prompt, tuple) else run.prompt
    if prompt is not None:
        settings["prompt"] = prompt
    if is_modular(pipe) and settings.get("output_type") == "latent":
        settings["output_type"] = "pt"  # most decoders know no other type; images are left aside
    if is_modular(pipe):
        for guider in guiders_of(pipe):
            begin_anew(guider)
    last = LastLatents(settings)
    with last.followed(pipe), steps:
        result = pipe(**last.settings)
    latent = settings.get("output_type") == "latent"
    images = getattr(result, "images", getattr(result, "image", None))  # image: of Kandinsky 5
    frames = getattr(result, "frames", getattr(result, "videos", None))
    if isinstance(result, tuple):
        images = result[0]
    made = images if frames is None else frames  # of Flux.2 klein not what its loop holds
    # Wan 2.2 5B puts a given frame back into them after the last step.
    given = pipe.config.get("expand_timesteps", False)
    return Output(
        images=None if latent else images,
        latents=made if latent and (last.latents is None or given) else last.latents,
        report=Report.of(wiring.registrations),
        made_by=provenance(
            pipe,
            run,
            model=model,
            seeds=seeds,
            steps=last.steps,
            dtype=dtype,
            registrations=wiring.registrations,
        ),
        frames=None if latent else frames,
        audio=getattr(result, "audio", None),
    )


def refuse_unknown_settings(pipe: Any, run: Run) -> None:
    """Refuse settings that a pipeline would swallow or that contradict the run.

    Raises:
        RunError: Naming the setting and the closest valid one.
    """
    if "generator" in run.settings and run.seed is not DEFAULT_SEED and run.seed is not None:
        raise RunError(
            f"both seed={run.seed!r} and generator= were given, and only one can make the noise; "
            "leave one out"
        )
    parameters = call_settings(pipe)
    given = [*run.settings, *(["prompt"] if run.prompt is not None else [])]
    unknown = [name for name in given if name not in (*parameters, *DEPRECATED)]
    if unknown:
        near = closest(unknown[0], parameters, count=2)
        hint = f" Closest: {listing(near)}." if near else ""
        raise UnknownSettingError(
            f"{type(pipe).__name__} takes no argument {unknown[0]!r}."
            f"{_scale_of(pipe, unknown[0]) or hint} Its arguments are "
            f"{listing(list(parameters), most=40)}",
            unknown[0],
        )


def _scale_of(pipe: Any, name: str) -> str:
    """Where a modular pipeline has the scale of its guidance instead."""
    if not is_modular(pipe) or not name.endswith(("guidance_scale", "cfg_scale")):
        return ""
    if not guiders_of(pipe):
        return " It has no guider, so that nothing is guided."
    return (
        " Its guider has the scale: `pipe.update_components(guider=pipe.guider.new("
        "guidance_scale=…))`."
    )


class LastLatents:
    """Keeps the final latents: by the pipeline's own step callback, else by what its steps return.

    Of a modular pipeline they are those with which its loop is left.

    Attributes:
        settings: The settings to call the pipeline with.
        latents: The latents after the last step; None before the first one.
        steps: How many steps there were.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        """Keep the settings of the call."""
        self.settings = settings
        self.latents: Tensor | None = None
        self.steps = 0
        self.theirs = settings.get("callback_on_step_end")

    @contextlib.contextmanager
    def followed(self, pipe: Any) -> Iterator[None]:
        """Follow a pipeline while the context is open."""
        if is_modular(pipe):
            with contextlib.ExitStack() as undo:
                for loop in loops_of(pipe):
                    undo.enter_context(observed(loop, "__call__", self._looped))
                undo.enter_context(observed(pipe.scheduler, "step", self._stepped))
                yield
            return
        parameters = inspect.signature(type(pipe).__call__).parameters
        if "callback_on_step_end" not in parameters:
            with observed(getattr(pipe, "scheduler", None), "step", self._stepped):
                yield
            return
        wanted = list(
            getattr(self.theirs, "tensor_inputs", None)
            or self.settings.get("callback_on_step_end_tensor_inputs", ["latents"])
        )
        if "latents" not in wanted:
            wanted.append("latents")
        self.settings = {
            **self.settings,
            "callback_on_step_end": self,
            "callback_on_step_end_tensor_inputs": wanted,
        }
        yield

    def __call__(self, pipe: Any, step: int, timestep: Any, tensors: dict) -> dict:
        """The pipeline's callback; the user's own is called from here."""
        self.steps += 1
        self.latents = without_condition(pipe, tensors["latents"])
        if self.theirs is None:
            return {}
        changed = self.theirs(pipe, step, timestep, tensors) or {}
        self.latents = without_condition(pipe, changed.get("latents", tensors["latents"]))
        return changed

    def _looped(self, original: Callable, components: Any, state: Any) -> Any:
        """A modular pipeline's loop, which may go on with other latents than its steps give."""
        result = original(components, state)
        left = state.get("latents")
        if self.latents is not None and isinstance(left, Tensor):
            self.latents = left
        return result

    def _stepped(self, original: Callable, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        self.steps += 1
        found = result[0] if isinstance(result, tuple) else getattr(result, "prev_sample", None)
        self.latents = found if isinstance(found, Tensor) else self.latents
        return result
