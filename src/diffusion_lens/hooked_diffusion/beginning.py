"""The beginning of a run: as much of it as shows every hook a value, and how long it would be."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from diffusion_lens.engine.wiring import Wiring
from diffusion_lens.hooked_diffusion.caching import quiet, refuse_two_parts
from diffusion_lens.hooked_diffusion.denoise_blocks import blocks_log_nothing, state_kept
from diffusion_lens.hooked_diffusion.hooking import Hook
from diffusion_lens.hooked_diffusion.model import HookedDiffusion
from diffusion_lens.hooked_diffusion.run import Run


@dataclass(frozen=True)
class Beginning:
    """How long a run would be.

    Attributes:
        steps: Steps of the scheduler, an upper bound where it does not tell where it begins.
        evaluations: Evaluations of the denoiser in all of them.
    """

    steps: int
    evaluations: int


class _StoppedError(Exception):
    """Ends a run that has shown enough."""


def beginning(model: HookedDiffusion, run: Run, fwd_hooks: Sequence[Hook]) -> Beginning:
    """Run a pipeline until every hook has seen a value, mostly one step, and stop it there.

    Nothing of it stays: the scheduler is given back what it held.

    Args:
        model: The model.
        run: What to run.
        fwd_hooks: (name or Site, function) pairs; functions that only read.

    Raises:
        HookNeverFiredError: If the run ends and a hook never saw a value.
        RunError: If two Sites select different parts of one hook point.
    """
    wiring: Wiring = model.wiring
    tracker = wiring.tracker
    pipe: Any = wiring.pipe
    others = list(wiring.registrations)
    total, steps, ran = tracker.total, 0, 0

    def stepped() -> None:
        nonlocal steps, ran
        steps, ran = tracker.steps_ahead or 0, ran + 1
        fired = [tap.registration.fired.get(tap.point.name) for tap in taps]
        if steps and all(one is not None and one.shown for one in fired):
            raise _StoppedError

    with model.hooks(fwd_hooks), contextlib.ExitStack() as undo:
        taps = wiring.taps_of([one for one in wiring.registrations if one not in others])
        refuse_two_parts(taps)
        if pipe is not None:
            undo.enter_context(state_kept(tracker.scheduler()))
            undo.enter_context(quiet(pipe))
            undo.enter_context(blocks_log_nothing())
        tracker.on_step.append(stepped)
        undo.callback(tracker.on_step.remove, stepped)
        with contextlib.suppress(_StoppedError):
            try:
                model(run)
            finally:
                if pipe is not None and hasattr(pipe, "maybe_free_model_hooks"):
                    pipe.maybe_free_model_hooks()
    return Beginning(steps or ran, round((tracker.total - total) / max(ran, 1) * (steps or ran)))
