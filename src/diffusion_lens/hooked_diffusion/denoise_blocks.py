"""One evaluation by the blocks of a modular pipeline: its loop's latents, its guider's step."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from diffusion_lens.engine.guiders import begin_anew, guiders_of
from diffusion_lens.engine.modular import loops_of
from diffusion_lens.engine.observing import observed
from diffusion_lens.engine.steps import StepTracker
from diffusion_lens.errors import RunError
from diffusion_lens.hooked_diffusion.run import Run

ELSEWHERE = ("latents", "image", "mask_image", "image_latents", "denoising_start", "denoising_end")
"""Settings that begin or end a modular pipeline's loop elsewhere than text to image does."""


def refuse_inexact(
    pipe: Any,
    latents: Tensor,
    run: Run,
    *,
    step: int | None,
    at_noise_level: float | None,
    grad: bool,
) -> None:
    """Refuse an evaluation that blocks cannot make as they make it in a run.

    Raises:
        RunError: Naming what cannot be had, and how to have it.
    """
    name, guiders = type(pipe).__name__, guiders_of(pipe)
    instead = (
        "wrap the classic pipeline of its components, `HookedDiffusion(Pipeline(**components))`"
    )
    given = [latents, *run.settings.values()]
    if grad or any(isinstance(value, Tensor) and value.requires_grad for value in given):
        raise RunError(
            f"the blocks of {name} compute under torch.no_grad, without gradients; {instead}"
        )
    if at_noise_level is not None and guiders:
        raise RunError(
            f"the {type(guiders[0]).__name__} of {name} guides by the step, which a noise_level= "
            f"has not; give step= and num_inference_steps=, or {instead}"
        )
    found = [one for one in ELSEWHERE if run.settings.get(one) is not None]
    if found:
        raise RunError(
            f"{name} with {found[0]}= begins or ends its loop elsewhere, so that steps would be "
            "others; denoise takes the latents themselves, and text to image alone"
        )
    for guider in guiders:
        if step and getattr(guider, "adaptive_projected_guidance_momentum", None) is not None:
            raise RunError(
                f"the {type(guider).__name__} of {name} has a momentum of the steps before, which "
                f"one evaluation at step {step} has not; give a guider without it, "
                "`pipe.guider.new(adaptive_projected_guidance_momentum=None)`"
            )
    if not loops_of(pipe):
        raise RunError(f"no block of {name} is a loop that takes latents; {instead}")


@contextlib.contextmanager
def loop_starts_with(pipe: Any, latents: Tensor) -> Iterator[None]:
    """Let a loop start from these very latents, unscaled and uncast."""

    def looped(original: Callable, components: Any, state: Any) -> Any:
        prepared = state.get("latents")
        for what in ("shape", "dtype"):
            wanted, found = getattr(prepared, what, None), getattr(latents, what)
            if wanted != found:
                wanted, found = (
                    (tuple(wanted or ()), tuple(found))
                    if what == "shape"
                    else (
                        wanted,
                        found,
                    )
                )
                raise RunError(
                    f"latents of {what} {found} were given where the loop of "
                    f"{type(pipe).__name__} holds {wanted}; it takes one latent for each image, "
                    "and height= and width= in pixels where latents are packed"
                )
        state.set("latents", latents)
        return original(components, state)

    with contextlib.ExitStack() as undo:
        for loop in loops_of(pipe):
            undo.enter_context(observed(loop, "__call__", looped))
        yield


@contextlib.contextmanager
def guided_from(tracker: StepTracker, step: int | None) -> Iterator[None]:
    """Tell the guiders the step as a whole run would, and give back their state afterwards."""
    pipe: Any = tracker.pipe
    total: list[int] = []

    def set_timesteps(original: Callable, *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(original).bind(*args, **kwargs).arguments
        result = original(*args, **kwargs)
        # Loops count such steps themselves, those of a schedule that was cut.
        if any(given.get(one) is not None for one in ("timesteps", "sigmas")):
            total[:] = [len(tracker.scheduler().timesteps)]
        return result

    def set_state(original: Callable, *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(original).bind(*args, **kwargs).arguments
        whole = total[0] if total else given["num_inference_steps"]
        return original(
            step=given["step"] + (step or 0),
            num_inference_steps=whole,
            timestep=given["timestep"],
        )

    with contextlib.ExitStack() as undo:
        scheduler = tracker.scheduler()
        undo.enter_context(observed(scheduler, "set_timesteps", set_timesteps, innermost=True))
        for guider in guiders_of(pipe):
            undo.enter_context(state_kept(guider))
            begin_anew(guider)
            undo.enter_context(observed(guider, "set_state", set_state))
        yield


@contextlib.contextmanager
def blocks_log_nothing() -> Iterator[None]:
    """Keep blocks from logging the exception that stops them, each with its traceback."""
    logger = logging.getLogger("diffusers.modular_pipelines.modular_pipeline")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


@contextlib.contextmanager
def state_kept(owner: Any) -> Iterator[None]:
    """Give a scheduler back all that it held, such as the history of a multistep solver.

    A copy would not do: the tracker and the caller's own observers know this very object. Tensors
    are not copied (some cannot be, inside autograd), since schedulers replace and never write them.
    """
    state = dict(vars(owner))
    lists = [(value, list(value)) for value in state.values() if isinstance(value, list)]
    inner = [value for value in state.values() if hasattr(value, "set_timesteps")]
    try:
        with contextlib.ExitStack() as kept:
            for one in inner:  # a solver's corrector is a scheduler of its own
                kept.enter_context(state_kept(one))
            yield
    finally:
        vars(owner).clear()
        vars(owner).update(state)
        for value, entries in lists:
            value[:] = entries
