"""One evaluation of the denoiser on given latents, exactly as the pipeline would make it.

The pipeline's own loop runs from the wanted step up to its first call of the scheduler and is
stopped there, so that text encoding, guidance and everything else a pipeline does are the
pipeline's own.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusion_lens.border import public
from diffusion_lens.engine.borders import on_output
from diffusion_lens.engine.denoisers import further_denoisers
from diffusion_lens.engine.modular import call_settings, is_modular
from diffusion_lens.engine.noise import (
    NoiseLevel,
    counts_data,
    is_flow,
    noise_level,
    timestep_at,
)
from diffusion_lens.engine.observing import observed, unobserved
from diffusion_lens.engine.prompt_blocks import classic
from diffusion_lens.engine.steps import StepTracker
from diffusion_lens.engine.wiring import Wiring
from diffusion_lens.errors import CacheKeyError, EngineError, RunError
from diffusion_lens.hooked_diffusion.caching import quiet
from diffusion_lens.hooked_diffusion.denoise_blocks import (
    blocks_log_nothing,
    guided_from,
    loop_starts_with,
    refuse_inexact,
    state_kept,
)
from diffusion_lens.hooked_diffusion.images import without_condition
from diffusion_lens.hooked_diffusion.packing import frames_to_a_latent, pixels_to_a_latent
from diffusion_lens.hooked_diffusion.run import Run, as_taken, generators
from diffusion_lens.showing.one_line import counted


@dataclass(frozen=True)
class Prediction:
    """What the denoiser says about some latents.

    Attributes:
        branches: The raw prediction of each guidance branch.
        guided: The prediction after guidance, as the scheduler would get it.
        latents: The latents that were denoised.
        level: Where on the noise schedule they lie.
        step: The step.
        timestep: The scheduler's timestep.
    """

    branches: Mapping[str, Tensor]
    guided: Tensor
    latents: Tensor
    level: NoiseLevel
    step: int
    timestep: float

    @property
    def cond(self) -> Tensor:
        """The conditional branch."""
        return self.branch("cond")

    @property
    def uncond(self) -> Tensor:
        """The unconditional branch."""
        return self.branch("uncond")

    @public
    def branch(self, name: str) -> Tensor:
        """The raw prediction of a guidance branch.

        Raises:
            CacheKeyError: If that branch did not run.
        """
        if name not in self.branches:
            raise CacheKeyError(
                f"branch {name!r} did not run, {list(self.branches)} did; a second branch needs "
                "guidance (guidance_scale above 1, or true_cfg_scale and a negative prompt)"
            )
        return self.branches[name]

    def __repr__(self) -> str:
        """Branches, shape and place in one line."""
        return (
            f"Prediction(branches {list(self.branches)}, shape {tuple(self.guided.shape)}, step "
            f"{self.step}, timestep {self.timestep:g})"
        )

    @property
    def pred_x0(self) -> Tensor:
        """The clean latents that the guided prediction implies."""
        return self.level.clean(self.guided, self.latents)


class _StoppedError(Exception):
    """Carries the guided prediction out of the pipeline's loop."""

    def __init__(self, prediction: Tensor, timestep: Any, level: NoiseLevel, step: int) -> None:
        super().__init__("the denoiser was evaluated once")
        self.step = step
        self.prediction = prediction
        self.level = level
        self.timestep = timestep


def denoise(
    wiring: Wiring,
    latents: Tensor,
    run: Run,
    *,
    step: int | None,
    at_noise_level: float | None,
    grad: bool | None,
) -> Prediction:
    """One evaluation; see `HookedDiffusion.denoise`."""
    if (step is None) == (at_noise_level is None):
        raise RunError(
            f"give exactly one of step= and noise_level=, got step={step!r} and "
            f"noise_level={at_noise_level!r}"
        )
    if at_noise_level is not None and not 0 < at_noise_level <= 1:
        raise RunError(f"noise_level={at_noise_level!r} must lie above 0 and up to 1")
    if wiring.spec.further:
        raise RunError(
            f"{type(wiring.denoiser).__name__} denoises something beside the image "
            f"({', '.join(wiring.spec.further.values())}), which the image's latents do not "
            "tell at a step; run the pipeline, and read `hook_noise_pred` there"
        )
    pipe: Any = wiring.pipe
    if pipe is None:
        raise RunError("a bare denoiser has no pipeline to take prompts; call it yourself")
    modular = is_modular(pipe)
    if modular:
        asked = bool(grad) or wiring.has_backward_hooks
        refuse_inexact(pipe, latents, run, at_noise_level=at_noise_level, step=step, grad=asked)
        grad = False
    if grad is None:
        given = [latents, *run.settings.values()]
        grad = any(isinstance(value, Tensor) and value.requires_grad for value in given)
        grad = torch.is_grad_enabled() and (grad or wiring.has_backward_hooks)
    found: dict[str, Tensor] = {}
    with (
        wiring.following() as tracker,
        quiet(pipe),
        torch.set_grad_enabled(grad),
        state_kept(tracker.scheduler()),
        guided_from(tracker, step) if modular else contextlib.nullcontext(),
        _starting_at(tracker, step, at_noise_level),
        loop_starts_with(pipe, latents) if modular else _latents_are(pipe, latents),
        _stopping(tracker),
        _branches_into(tracker, found),
    ):
        run_once = _run_blocks_until_stopped if modular else _run_until_stopped
        stopped = run_once(tracker, wiring, run, latents)
    return Prediction(
        branches=found,
        guided=stopped.prediction,
        latents=latents,
        level=stopped.level,
        step=stopped.step,
        timestep=float(stopped.timestep),
    )


def _run_until_stopped(
    tracker: StepTracker, wiring: Wiring, run: Run, latents: Tensor
) -> _StoppedError:
    pipe: Any = wiring.pipe
    method = unobserved(type(pipe), "__call__")
    call = getattr(method, "__wrapped__", method)  # without its torch.no_grad()
    parameters = inspect.signature(call).parameters
    if "latents" not in parameters or "strength" in parameters:
        raise RunError(
            f"{type(pipe).__name__} makes its own latents, so it cannot denoise given ones; wrap "
            "the text-to-image pipeline of its parts (`AutoPipelineForText2Image.from_pipe(pipe)`)"
        )
    if latents.dtype != wiring.denoiser.dtype:
        raise RunError(
            f"the latents are {latents.dtype}, the denoiser is {wiring.denoiser.dtype}; cast "
            "them with `latents.to(model.dtype)`"
        )
    size = _size_of(wiring, latents, run.settings)
    settings = {**size, **run.settings, "latents": latents}
    settings.setdefault("generator", as_taken(pipe, generators(run.seeds())))
    settings["output_type"] = "latent"
    prompt = list(run.prompt) if isinstance(run.prompt, tuple) else run.prompt
    settings["prompt"] = prompt
    _refuse_missing(pipe, parameters, settings)
    try:
        with tracker.calling(settings):
            call(pipe, **settings)
    except _StoppedError as stopped:
        return stopped
    finally:
        pipe.maybe_free_model_hooks()
    raise EngineError(
        f"{type(pipe).__name__} finished without calling its scheduler; are there steps to run?"
    )


def _run_blocks_until_stopped(
    _tracker: StepTracker, wiring: Wiring, run: Run, latents: Tensor
) -> _StoppedError:
    pipe: Any = wiring.pipe
    taken = call_settings(pipe)
    settings = {**_size_of(wiring, latents, run.settings), **run.settings}
    settings.setdefault("generator", generators(run.seeds()))
    prompt = list(run.prompt) if isinstance(run.prompt, tuple) else run.prompt
    settings |= {} if prompt is None else {"prompt": prompt}
    try:
        with blocks_log_nothing():
            pipe(**{one: value for one, value in settings.items() if one in taken})
    except _StoppedError as stopped:
        return stopped
    raise EngineError(
        f"{type(pipe).__name__} finished without calling its scheduler; are there steps to run?"
    )


def _refuse_missing(
    pipe: Any, parameters: Mapping[str, inspect.Parameter], settings: Mapping[str, Any]
) -> None:
    """Refuse a call without an argument that the pipeline needs.

    Raises:
        RunError: Naming it.
    """
    for name, one in list(parameters.items())[1:]:
        alone = one.kind in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
        if one.default is one.empty and not alone and name not in settings:
            raise RunError(
                f"{type(pipe).__name__} needs {name}=, which is not among the settings; to an "
                f"analysis with an image= of its own, give it with the prompt: `Run(prompt, "
                f"{name}=…)`"
            )


def _size_of(wiring: Wiring, latents: Tensor, settings: Mapping[str, Any]) -> dict[str, int]:
    """Height and width in pixels, and frames, of unpacked latents; packed ones do not tell."""
    pipe = classic(wiring.pipe, "denoise")
    axes = wiring.points["hook_latents"].axes
    if latents.ndim != len(axes):  # Z-Image's loop holds no frames, which its denoiser takes
        axes = ("batch", "channel", "height", "width")
    if latents.ndim != len(axes) or "height" not in axes:
        return {}
    size = {}
    known = inspect.signature(type(pipe).__call__).parameters
    for name in {"num_frames", "frames"} & set(known) if "frame" in axes else ():
        every = frames_to_a_latent(pipe)
        size[name] = (latents.shape[axes.index("frame")] - 1) * every + 1
    if "height" in settings or "width" in settings:
        return size
    scale = pixels_to_a_latent(pipe)
    return size | {side: latents.shape[axes.index(side)] * scale for side in ("height", "width")}


@contextlib.contextmanager
def _latents_are(pipe: Any, latents: Tensor) -> Iterator[None]:
    """Let the loop start from these very latents, unscaled and uncast."""

    def prepared_latents(original: Callable, *args: Any, **kwargs: Any) -> Any:
        signature = inspect.signature(original)
        bound = signature.bind(*args, **kwargs)
        if "latents" in signature.parameters:
            bound.arguments["latents"] = None  # so that the pipeline says what it needs
        with _generators_kept(bound.arguments.get("generator")):
            prepared = original(*bound.args, **bound.kwargs)
        if isinstance(prepared, Tensor):
            own = without_condition(pipe, prepared)
            _same_shape(own, latents)
            beside = prepared[..., own.shape[-1] :]
            return torch.cat([latents, beside], -1) if beside.numel() else latents
        _same_shape(prepared[0], latents)
        return (latents, *prepared[1:])

    with observed(pipe, "prepare_latents", prepared_latents):
        yield


@contextlib.contextmanager
def _generators_kept(given: Any) -> Iterator[None]:
    """Put generators back into the state in which they were found."""
    listed = given if isinstance(given, list) else [] if given is None else [given]
    states = [generator.get_state() for generator in listed]
    try:
        yield
    finally:
        for generator, state in zip(listed, states, strict=True):
            generator.set_state(state)


def _same_shape(prepared: Tensor, latents: Tensor) -> None:
    if prepared.shape != latents.shape:
        raise RunError(
            f"latents of shape {tuple(latents.shape)} were given where the pipeline needs "
            f"{tuple(prepared.shape)}; it takes one latent for each image, its own channels, and "
            "height= and width= in pixels where latents are packed"
        )


@contextlib.contextmanager
def _starting_at(
    tracker: StepTracker, step: int | None, at_noise_level: float | None
) -> Iterator[None]:
    """Cut the schedule so that the loop begins at the wanted step or noise level."""
    scheduler = tracker.scheduler()

    def cut() -> None:
        total = len(scheduler.timesteps)
        if step is not None:
            if not 0 <= step < total:
                raise RunError(
                    f"step {step} does not exist, these settings make {counted(total, 'step')} "
                    f"(0 to {total - 1}); raise num_inference_steps"
                )
            scheduler.timesteps = scheduler.timesteps[step:]
            if getattr(scheduler, "sigmas", None) is not None and len(scheduler.sigmas) > total:
                scheduler.sigmas = scheduler.sigmas[step:]
            tracker.run.begin(step + 1)
            tracker.run.step = tracker.run.first_step = step
            return
        assert at_noise_level is not None
        tracker.run.begin(1)
        scheduler.timesteps, sigma = schedule_at(scheduler, at_noise_level)
        if sigma is not None:
            end = 1.0 if counts_data(scheduler) else 0.0
            scheduler.sigmas = torch.tensor([sigma, end], dtype=torch.float32)

    tracker.on_timesteps.append(cut)
    try:
        yield
    finally:
        tracker.on_timesteps.remove(cut)


def schedule_at(scheduler: Any, level: float) -> tuple[Tensor, float | None]:
    """The timesteps (one) and the sigma of a noise level, `timestep / num_train_timesteps`.

    The sigma is in the scheduler's own units: noise over signal, except with flow matching.
    """
    timestep = timestep_at(scheduler, level)
    whole = not scheduler.timesteps.dtype.is_floating_point
    if whole:
        timestep = round(timestep) - (1 if level == 1 else 0)
    timesteps = torch.tensor([timestep], dtype=scheduler.timesteps.dtype).to(
        scheduler.timesteps.device
    )
    if getattr(scheduler, "sigmas", None) is None:
        return timesteps, None
    at = noise_level(scheduler, float(timestep))
    if counts_data(scheduler):
        return timesteps, at.signal
    return timesteps, at.noise if is_flow(scheduler) else at.noise / at.signal


@contextlib.contextmanager
def _stopping(tracker: StepTracker) -> Iterator[None]:
    """Stop the loop when the scheduler gets the guided prediction."""

    def stop(prediction: Tensor, timestep: Any, _sample: Tensor) -> Tensor:
        raise _StoppedError(prediction, timestep, tracker.noise_level(timestep), tracker.step)

    tracker.on_guided.append(stop)
    try:
        yield
    finally:
        tracker.on_guided.remove(stop)


@contextlib.contextmanager
def _branches_into(tracker: StepTracker, found: dict[str, Tensor]) -> Iterator[None]:
    """Collect the raw prediction of each branch."""

    def keep(prediction: Tensor) -> Tensor:
        for branch, rows in tracker.last_evaluation().rows:
            found[branch] = prediction[rows]
        return prediction

    further = further_denoisers(tracker.pipe, tracker.denoiser).values()
    handles = [on_output(module, 0, keep) for module in (tracker.denoiser, *further)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
