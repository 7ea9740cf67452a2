"""Single evaluations of the denoiser on the clean trajectory, with either prompt, row by row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffusion_lens import HookContext, HookedDiffusion
from diffusion_lens.analyses.patching.outcome import Outcome
from diffusion_lens.analyses.patching.pair import Pair, Side
from diffusion_lens.analyses.patching.scoreboard import Moment
from diffusion_lens.analyses.patching.several import several_samples
from diffusion_lens.errors import PatchingError

BRANCH = "cond"


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The clean run's latents at every step, and where they lie on the noise schedule.

    Attributes:
        inputs: What the denoiser reads at each step, for every sample.
        latents: The loop's own latents at each step, likewise.
        times: The denoiser's timestep argument at each step, for one sample.
        noise_levels: The noise level of each step.
        names: The denoiser's arguments that take latents and timestep.
        listed: Whether the denoiser takes its samples as a list.
    """

    inputs: Mapping[int, Tensor]
    latents: Mapping[int, Tensor]
    times: Mapping[int, Tensor]
    noise_levels: Mapping[int, Any]
    names: tuple[str, str]
    listed: bool = False

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps of the run."""
        return tuple(self.inputs)


@torch.no_grad()
def follow(model: HookedDiffusion, pair: Pair) -> Trajectory:
    """Run the clean side once, for all samples, without decoding.

    Raises:
        PatchingError: If the denoiser has latents of something else beside the image's.
    """
    if model.spec.further:
        raise PatchingError(
            f"{type(model.denoiser).__name__} has further latents that single evaluations lack "
            f"({', '.join(model.spec.further.values())}); patch whole runs with "
            "activation_patching(mode='on-trajectory') or mode='window'"
        )
    inputs: dict[int, Tensor] = {}
    latents: dict[int, Tensor] = {}
    times: dict[int, Tensor] = {}
    noise_levels: dict[int, Any] = {}
    timestep = model.spec.timestep
    lists: set[str] = set()

    def read(value: Tensor, hook: HookContext) -> None:
        evaluation: Any = hook.evaluation
        if isinstance(evaluation.arguments[model.spec.latents], list):
            lists.add(model.spec.latents)
        inputs[hook.step] = value.clone()
        given = torch.as_tensor(evaluation.arguments[timestep])
        one = given[dict(evaluation.rows)[BRANCH]][0] if given.ndim else given
        times[hook.step] = one.clone()
        noise_levels[hook.step] = evaluation.noise_level()

    def sample(value: Tensor, hook: HookContext) -> None:
        latents[hook.step] = value.clone()

    for reader in (read, sample):
        reader.read_only = True  # type: ignore[attr-defined]
    run = pair.batch(pair.clean, range(len(pair.seeds)))
    hooks = [(f"hook_latents[branch={BRANCH}]", read), ("hook_sample", sample)]
    with pair.clean.encoding(model), several_samples(model, run):
        model.run_with_hooks(run, fwd_hooks=hooks, output_type="latent")
    names = (model.spec.latents, timestep)
    return Trajectory(inputs, latents, times, noise_levels, names, bool(lists))


@dataclass(frozen=True, eq=False)
class Row:
    """A tensor for one row of the batch.

    Attributes:
        value: The tensor.
        listed: Whether the denoiser takes a list with a tensor for each sample.
        smooth: Whether a gradient may go through it: not through masks, which some families have
            in floating point, and make numbers of tokens of.
        axis: Where the batch lies: mostly in front.
    """

    value: Tensor
    listed: bool = False
    smooth: bool = True
    axis: int = 0


@dataclass(frozen=True)
class Sizes:
    """What an argument lists for one sample, without tensors: sizes of images.

    Attributes:
        value: The sample's.
    """

    value: list[Any]


@dataclass(frozen=True, eq=False)
class Conditions:
    """What one prompt gives the denoiser besides latents and timestep.

    Attributes:
        arguments: The arguments as the denoiser takes them, nested ones too; what has the batch in
            front is a `Row`, or `Sizes`.
    """

    arguments: Mapping[str, Any]

    def rows(self, count: int, *, grad: bool = False) -> dict[str, Any]:
        """The arguments for a batch; with `grad` autograd records from them on."""

        def repeated(row: Row | Sizes) -> Tensor | list[Any]:
            if isinstance(row, Sizes):
                return [row.value] * count
            size = [*row.value.shape]
            size[row.axis] = count
            value = row.value.expand(size).contiguous()  # some models view it in other sizes
            value = value.requires_grad_(grad and row.smooth and value.is_floating_point())
            return list(value.unbind()) if row.listed else value

        return _mapped(self.arguments, repeated)

    def mixed(self, other: Conditions, weight: float) -> Conditions:
        """On the straight way to another prompt's conditions: 0 is here, 1 is there.

        Raises:
            PatchingError: If the text of the prompts has different lengths.
        """

        def mix(here: Row | Sizes, there: Any) -> Row | Sizes:
            if isinstance(here, Sizes):
                return here
            if here.value.shape != there.value.shape:
                raise PatchingError(
                    f"there is no straight way between text of shape {tuple(here.value.shape)} "
                    f"and {tuple(there.value.shape)}; pad both prompts to one length"
                )
            if not here.value.is_floating_point():
                return here
            return replace(here, value=torch.lerp(here.value, there.value, weight))

        return Conditions(_mapped(self.arguments, mix, other.arguments))


@torch.no_grad()
def conditions(model: HookedDiffusion, side: Side, trajectory: Trajectory) -> Conditions:
    """Encode one side's prompt, as the pipeline does it, for one sample."""
    found: dict[str, Any] = {}

    def read(_value: Tensor, hook: HookContext) -> None:
        evaluation: Any = hook.evaluation
        at = dict(evaluation.rows)[BRANCH]

        def cut(given: Any, name: str) -> Any:
            if isinstance(given, Tensor) and given.ndim and given.shape[0] == evaluation.batch:
                return Row(given[at].clone(), smooth="mask" not in name)
            if isinstance(given, dict):
                return {inner: cut(one, inner) for inner, one in given.items()}
            if isinstance(given, list) and given and isinstance(given[0], Tensor):
                return in_list(given, name)
            if isinstance(given, list) and given and isinstance(given[0], list):
                return Sizes(given[at][0]) if len(given) == evaluation.batch else given
            return given

        def in_list(given: list[Tensor], name: str) -> Any:
            if trajectory.listed:
                return Row(torch.stack(given[at]).clone(), listed=True)
            # Texts of several layers (Bria FIBO) each hold the batch; positions do not.
            return [cut(one, name) for one in given] if given[0].ndim == 3 else given

        for name, given in evaluation.arguments.items():
            if name in model.spec.batch_second:
                found[name] = Row(given[:, at].clone(), axis=1)
            elif name in model.spec.without_batch:
                found[name] = given
            elif name not in trajectory.names:
                found[name] = cut(given, name)

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
    return change(given, *others) if isinstance(given, Row | Sizes) else given


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
        stacked = torch.stack([path.inputs[step][sample] for step, sample in moments])
        inputs = stacked.requires_grad_(grad)
        return {
            **given.rows(len(moments), grad=grad),
            latents: list(inputs.unbind()) if path.listed else inputs,
            time: torch.stack([path.times[step] for step, _ in moments]),
        }

    def __call__(self, arguments: Mapping[str, Any]) -> Tensor:
        """The raw conditional prediction; hooks see the branch `cond`."""
        found = self.model.denoiser(**arguments)[0]
        return torch.stack(found) if isinstance(found, list) else found

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
        # Pipelines whose timestep counts from the clean image turn the prediction round.
        sign = 1.0 if self.model.spec.timestep_scale > 0 else -1.0

        def clean(prediction: Tensor) -> Tensor:
            rows = zip(prediction * sign, moments, strict=True)
            noise_levels, latents = self.trajectory.noise_levels, self.trajectory.latents
            return torch.stack(
                [
                    noise_levels[step].clean(
                        _like(row, latents[step][sample]), latents[step][sample]
                    )
                    for row, (step, sample) in rows
                ]
            )

        steps = tuple(step for step, _ in moments)
        samples = tuple(sample for _, sample in moments)
        return Outcome(value, samples, steps, _clean=clean, _decode=self.decode)

    def decode(self, latents: Tensor) -> Any:
        """Latents as images."""
        return decoded(self.model, latents, self.pair.clean.run.settings)


def _like(prediction: Tensor, latents: Tensor) -> Tensor:
    """What the denoiser gives for one sample, in the shape of its latents.

    Raises:
        PatchingError: If it is not certain which part of it belongs to them.
    """
    if prediction.shape == latents.shape:
        return prediction
    if prediction.squeeze().shape == latents.squeeze().shape:  # Z-Image has an axis of one frame
        return prediction.reshape(latents.shape)
    if prediction.shape == (2 * latents.shape[0], *latents.shape[1:]):  # PixArt: and a variance
        return prediction[: len(latents)]
    raise PatchingError(
        f"the prediction has the shape {tuple(prediction.shape)} where the latents have "
        f"{tuple(latents.shape)}, so that clean latents cannot be told; take a metric of "
        "`outcome.value`, or mode='on-trajectory'"
    )


def decoded(model: HookedDiffusion, latents: Tensor, settings: Mapping[str, Any]) -> Any:
    """Latents as an array of images, or of videos, in [0, 1]."""
    size = {name: settings[name] for name in ("height", "width") if name in settings}
    return model.decode_latents(latents, output_type="np", **size)
