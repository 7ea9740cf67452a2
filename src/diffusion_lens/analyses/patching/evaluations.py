"""Single evaluations of the denoiser on the clean trajectory, with either prompt, row by row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusion_lens import HookContext, HookedDiffusion
from diffusion_lens.analyses.patching.outcome import Outcome
from diffusion_lens.analyses.patching.pair import Pair, Side
from diffusion_lens.analyses.patching.scoreboard import Moment
from diffusion_lens.errors import PatchingError

BRANCH = "cond"


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The clean run's latents at every step, and where they lie on the noise schedule.

    Attributes:
        inputs: What the denoiser reads at each step, for every sample.
        latents: The loop's own latents at each step, likewise.
        times: The denoiser's timestep argument at each step.
        noise_levels: The noise level of each step.
        names: The denoiser's arguments that take latents and timestep.
    """

    inputs: Mapping[int, Tensor]
    latents: Mapping[int, Tensor]
    times: Mapping[int, Tensor]
    noise_levels: Mapping[int, Any]
    names: tuple[str, str]

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps of the run."""
        return tuple(self.inputs)


@torch.no_grad()
def follow(model: HookedDiffusion, pair: Pair) -> Trajectory:
    """Run the clean side once, for all samples, without decoding."""
    inputs: dict[int, Tensor] = {}
    latents: dict[int, Tensor] = {}
    times: dict[int, Tensor] = {}
    noise_levels: dict[int, Any] = {}
    timestep = model.spec.timestep

    def read(value: Tensor, hook: HookContext) -> None:
        evaluation: Any = hook.evaluation
        if isinstance(evaluation.arguments[model.spec.latents], list):
            raise PatchingError(
                f"{model.name} takes its samples one by one, so that patched rows cannot share a "
                "batch; patch it with `run_with_hooks` and `interventions.replace_with`"
            )
        inputs[hook.step] = value.clone()
        times[hook.step] = torch.as_tensor(evaluation.arguments[timestep]).reshape(-1)[0].clone()
        noise_levels[hook.step] = evaluation.noise_level()

    def sample(value: Tensor, hook: HookContext) -> None:
        latents[hook.step] = value.clone()

    for reader in (read, sample):
        reader.read_only = True  # type: ignore[attr-defined]
    run = pair.batch(pair.clean, range(len(pair.seeds)))
    hooks = [(f"hook_latents[branch={BRANCH}]", read), ("hook_sample", sample)]
    with pair.clean.encoding(model):
        model.run_with_hooks(run, fwd_hooks=hooks, output_type="latent")
    return Trajectory(inputs, latents, times, noise_levels, (model.spec.latents, timestep))


@dataclass(frozen=True, eq=False)
class Row:
    """A tensor for one row of the batch, which lies along an axis: mostly the first."""

    value: Tensor
    axis: int = 0


@dataclass(frozen=True, eq=False)
class Conditions:
    """What one prompt gives the denoiser besides latents and timestep.

    Attributes:
        arguments: The arguments as the denoiser takes them, nested ones too; what has the batch in
            front is a `Row`.
    """

    arguments: Mapping[str, Any]

    def rows(self, count: int, *, grad: bool = False) -> dict[str, Any]:
        """The arguments for a batch; with `grad` autograd records from them on."""

        def repeated(row: Row) -> Tensor:
            size = [*row.value.shape]
            size[row.axis] = count
            value = row.value.expand(size)
            return value.requires_grad_(grad and value.is_floating_point())

        return _mapped(self.arguments, repeated)

    def mixed(self, other: Conditions, weight: float) -> Conditions:
        """On the straight way to another prompt's conditions: 0 is here, 1 is there.

        Raises:
            PatchingError: If the text of the prompts has different lengths.
        """

        def mix(here: Row, there: Row) -> Row:
            if here.value.shape != there.value.shape:
                raise PatchingError(
                    f"there is no straight way between text of shape {tuple(here.value.shape)} "
                    f"and {tuple(there.value.shape)}; pad both prompts to one length"
                )
            if not here.value.is_floating_point():
                return here
            return Row(torch.lerp(here.value, there.value, weight), here.axis)

        return Conditions(_mapped(self.arguments, mix, other.arguments))


@torch.no_grad()
def conditions(model: HookedDiffusion, side: Side, trajectory: Trajectory) -> Conditions:
    """Encode one side's prompt, as the pipeline does it, for one sample."""
    found: dict[str, Any] = {}

    def read(_value: Tensor, hook: HookContext) -> None:
        evaluation: Any = hook.evaluation
        at = dict(evaluation.rows)[BRANCH]

        def cut(given: Any) -> Any:
            if isinstance(given, Tensor) and given.ndim and given.shape[0] == evaluation.batch:
                return Row(given[at].clone())
            if isinstance(given, dict):
                return {name: cut(one) for name, one in given.items()}
            # Texts of several layers (Bria FIBO); positions in lists have no batch.
            if isinstance(given, list) and all(getattr(one, "ndim", 0) == 3 for one in given):
                return [cut(one) for one in given]
            return given

        for name, given in evaluation.arguments.items():
            if name in model.spec.batch_second:
                found[name] = Row(given[:, at].clone(), 1)
            elif name not in trajectory.names:
                found[name] = cut(given)

    read.read_only = True  # type: ignore[attr-defined]
    first = trajectory.steps[0]
    given = trajectory.latents[first][:1]
    with side.encoding(model), model.hooks([(f"hook_latents[branch={BRANCH}]", read)]):
        model.denoise(given, prompt=side.prompt, step=first, **side.run.settings)
    # Kandinsky 5, which is asked for it, returns no tuple otherwise.
    return Conditions({"return_dict": False, **found})


def _mapped(given: Any, change: Callable[..., Any], *others: Any) -> Any:
    """Nested arguments with every row changed."""
    if isinstance(given, dict):
        return {
            name: _mapped(one, change, *(other[name] for other in others))
            for name, one in given.items()
        }
    if isinstance(given, list):
        return [
            _mapped(one, change, *(other[at] for other in others)) for at, one in enumerate(given)
        ]
    return change(given, *others) if isinstance(given, Row) else given


@dataclass(frozen=True, eq=False)
class Evaluator:
    """Evaluates the denoiser on any rows of the trajectory, each at a step of its own."""

    model: HookedDiffusion
    pair: Pair
    trajectory: Trajectory

    def arguments(
        self, given: Conditions, moments: Sequence[Moment], *, grad: bool = False
    ) -> dict[str, Any]:
        """What the denoiser is called with; latents and timestep differ from row to row."""
        path = self.trajectory
        latents, time = path.names
        inputs = torch.stack([path.inputs[step][sample] for step, sample in moments])
        return {
            **given.rows(len(moments), grad=grad),
            latents: inputs.requires_grad_(grad),
            time: torch.stack([path.times[step] for step, _ in moments]),
        }

    def __call__(self, arguments: Mapping[str, Any]) -> Tensor:
        """The raw conditional prediction; hooks see the branch `cond`."""
        return self.model.denoiser(**arguments)[0]

    def outcome(self, value: Tensor, moments: Sequence[Moment]) -> Outcome:
        """What a metric is given of these predictions.

        Raises:
            PatchingError: If they hold more tokens than the latents.
        """
        step, sample = moments[0]
        own = self.trajectory.latents[step][sample]
        if own.ndim == 2 and len(own) != value.shape[1]:
            raise PatchingError(
                f"predictions of {self.model.name} have {value.shape[1]} tokens, its latents "
                f"{len(own)}: what else lies among them would count in the metric; patch it with "
                "`run_with_hooks` and `interventions.replace_with`"
            )

        def clean(prediction: Tensor) -> Tensor:
            rows = zip(prediction, moments, strict=True)
            noise_levels, latents = self.trajectory.noise_levels, self.trajectory.latents
            return torch.stack(
                [
                    noise_levels[step].clean(row, latents[step][sample])
                    for row, (step, sample) in rows
                ]
            )

        steps = tuple(step for step, _ in moments)
        samples = tuple(sample for _, sample in moments)
        return Outcome(value, samples, steps, _clean=clean, _decode=self.decode)

    def decode(self, latents: Tensor) -> Any:
        """Latents as images."""
        return decoded(self.model, latents, self.pair.clean.run.settings)


def decoded(model: HookedDiffusion, latents: Tensor, settings: Mapping[str, Any]) -> Any:
    """Latents as an array of images in [0, 1]."""
    size = {name: settings[name] for name in ("height", "width") if name in settings}
    return model.decode_latents(latents, output_type="np", **size)
