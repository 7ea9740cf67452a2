"""Latents that change inside the pipeline's own loop, before each step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from diffusion_lens import HookedDiffusion, Output, Run
from diffusion_lens.authoring import DEFAULT_SEED, observed
from diffusion_lens.border import Number, PipelineSetting, public
from diffusion_lens.errors import RunError
from diffusion_lens.hook_points import Indices, Site, contains, steps_of
from diffusion_lens.interventions.pattern_gradient import LossAt, LossFunction, PatternGradient

Evaluate = Callable[[Tensor], LossAt]
Rule = Callable[[Tensor, int, Evaluate], Tensor]
"""Latents, the step that they enter, and what evaluates the loss there; gives the new latents."""


@public
@dataclass
class LatentUpdate:
    """A change of the latents, before each step, by the gradient of a loss.

    Attributes:
        sites: What the loss is a function of.
        loss: Takes (activation, hook) pairs in the order in which they were computed, and gives a
            scalar.
        rule: What is done with it: takes the latents, the step (as hooks count it), and a
            function that gives loss and gradient at any latents of that step; gives new latents.
            `descend` is the simplest.
        checkpoint: Recompute blocks in the backward pass in place of keeping what they computed.
        evaluations: (step, loss) of every evaluation that was made, in order.

    Examples:
        >>> update = LatentUpdate(sites, loss, descend(step_size=10.0, steps=range(25)))
        >>> out = run_with_latent_update(model, "a cat and a dog", update)
    """

    sites: Sequence[Site | str]
    loss: LossFunction
    rule: Rule
    checkpoint: bool = True
    evaluations: list[tuple[int, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Descend:
    """A rule that goes down the gradient once a step."""

    step_size: float
    steps: Indices | None = None

    def __call__(self, latents: Tensor, step: int, evaluate: Evaluate) -> Tensor:
        """The latents after one step down."""
        if not contains(self.steps, step):
            return latents
        return latents - self.step_size * evaluate(latents).gradient


@public
def descend(*, step_size: Number, steps: Any = None) -> Descend:
    """Make a rule that goes down the gradient once before each step.

    Args:
        step_size: Factor on the gradient.
        steps: At which steps, such as `range(25)`; None for all.

    Raises:
        SiteError: If the steps are malformed.
    """
    return Descend(step_size, steps_of(steps))


@public
def run_with_latent_update(
    model: HookedDiffusion,
    prompts: str | Sequence[str] | Run,
    update: LatentUpdate,
    *,
    seed: int | Sequence[int] | None = DEFAULT_SEED,
    **settings: PipelineSetting,
) -> Output:
    """Generate while a loss over activations changes the latents before each step.

    The pipeline's own loop runs; between its steps the conditional branch is evaluated again, with
    autograd. Active hooks are paused for these evaluations, so that the gradient is that of the
    model as it is.

    Latents that follow a gradient far leave what the model was trained on; images then break
    before the loss is small.

    Args:
        model: The model.
        prompts: A prompt, several, or a `Run`.
        update: What changes them. Its `evaluations` are filled.
        seed: As for a call of the model.
        **settings: Arguments of the pipeline's own call.

    Returns:
        What the model generated.

    Raises:
        RunError: If the rule changes the latents' shape, the loss is no scalar, or the pipeline
            cannot start from latents.
    """
    run = Run.of(prompts, seed=seed, settings=settings)
    gradient = PatternGradient(model, run, update.sites, update.loss, checkpoint=update.checkpoint)
    loop = _Loop(model, update, gradient, run.settings.get("callback_on_step_end"))
    update.evaluations.clear()
    with loop.starting():
        return model(run.with_(callback_on_step_end=loop))


@dataclass
class _Loop:
    """The pipeline's step callback, and what changes the latents that the loop starts from."""

    model: HookedDiffusion
    update: LatentUpdate
    gradient: PatternGradient
    theirs: Any = None
    steps: int | None = None

    @property
    def tensor_inputs(self) -> list[str] | None:
        """What the caller's own callback wants, where it says so itself."""
        return getattr(self.theirs, "tensor_inputs", None)

    def __call__(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict:
        """The latents of the next step, changed."""
        changed = {} if self.theirs is None else self.theirs(pipe, step, timestep, tensors) or {}
        latents = changed.get("latents", tensors["latents"])
        if step + 1 >= (self.steps or len(pipe.scheduler.timesteps)):
            return changed
        return {**changed, "latents": self.change(latents, step + 1)}

    def change(self, latents: Tensor, step: int) -> Tensor:
        """Latents after the rule."""

        def evaluate(at: Tensor) -> LossAt:
            found = self.gradient(at, step)
            self.steps = found.steps
            self.update.evaluations.append((step, found.loss))
            return found

        with self.model.paused():
            new = self.update.rule(latents, step, evaluate)
        if not isinstance(new, Tensor) or new.shape != latents.shape:
            made = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise RunError(
                f"the rule {self.update.rule!r} made latents of shape {made} of those of shape "
                f"{tuple(latents.shape)}; it must return latents of the same shape"
            )
        return new.to(latents)

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """Change the latents that the loop begins with, too."""
        pipe: Any = self.model.pipe
        if not hasattr(pipe, "prepare_latents"):
            raise RunError(
                f"{type(pipe).__name__} has no `prepare_latents`, so it cannot be entered"
            )

        def changed(prepare_latents: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            prepared = prepare_latents(*args, **kwargs)
            if isinstance(prepared, Tensor):
                return self.change(prepared, 0)
            return (self.change(prepared[0], 0), *prepared[1:])

        with observed(pipe, "prepare_latents", changed):
            yield
