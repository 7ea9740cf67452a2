"""The hook points outside of the blocks: at modules by their path, and at the scheduler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from diffusion_lens.architectures.sources import AtModule, AtScheduler
from diffusion_lens.engine.borders import on_argument, on_output
from diffusion_lens.engine.evaluation import Evaluation
from diffusion_lens.engine.firing import fire
from diffusion_lens.engine.handles import Handle, Removal
from diffusion_lens.engine.steps import StepTracker
from diffusion_lens.engine.taps import Tap
from diffusion_lens.hook_points.selectors import GUIDED


def at_module(tracker: StepTracker, source: AtModule, taps: Sequence[Tap]) -> Handle:
    """Fire on a module's argument or output."""
    point = source.point
    module = tracker.module(point.module, of=point.name)

    axes = taps[0].point.axes
    embedded: list[Evaluation] = []

    def transform(value: Tensor) -> Tensor:
        sequence = taps[0].point.sequences.get("pos", ())
        lengths = dict.fromkeys(sequence, value.shape[1])
        # The denoiser's own output comes when it is over.
        at_the_end = not point.module and point.argument is None
        evaluation = tracker.last_evaluation() if at_the_end else tracker.evaluation()
        if "d_emb" in axes and evaluation.tokens_have_timesteps():
            for tap in taps:
                fired = tap.registration.fired[tap.point.name]
                fired.absent = (
                    "every token has a timestep of its own here, so that the embeddings have the "
                    f"shape {tuple(value.shape)}; read them with 'native:{point.module}'"
                )
            return value
        if "d_emb" in axes and evaluation.made:
            if evaluation in embedded:  # the references' own timestep comes second
                return value
            embedded[:] = [evaluation]
        return fire(taps, value, evaluation, lengths)

    if point.argument is not None:
        return on_argument(module, point.argument, transform)
    return on_output(module, point.output, transform)


def at_scheduler(tracker: StepTracker, source: AtScheduler, taps: Sequence[Tap]) -> Handle:
    """Fire on what the scheduler is given."""
    return SCHEDULER[source.which](tracker, taps)


def _sample(tracker: StepTracker, taps: Sequence[Tap]) -> Handle:
    def sampled(sample: Tensor) -> Tensor:
        return _fire(tracker, taps, sample, like=sample)

    tracker.on_sample.append(sampled)
    return Removal(lambda: tracker.on_sample.remove(sampled))


def _guided_prediction(tracker: StepTracker, taps: Sequence[Tap]) -> Handle:
    def guided(prediction: Tensor, _timestep: Any, _sample: Tensor) -> Tensor:
        return _fire(tracker, taps, prediction, like=prediction)

    tracker.on_guided.insert(0, guided)
    return Removal(lambda: tracker.on_guided.remove(guided))


def _clean_image(tracker: StepTracker, taps: Sequence[Tap]) -> Handle:
    """What the prediction says the clean latents are; after the hooks on the prediction."""

    def guided(prediction: Tensor, timestep: Any, sample: Tensor) -> Tensor:
        noise_level = tracker.noise_level(timestep)
        clean = noise_level.clean(prediction, sample)
        changed = _fire(tracker, taps, clean, like=prediction)
        if changed is clean:
            return prediction
        # As a difference, so that patching in the same value again changes no bit.
        before, after = (noise_level.prediction_for(image, sample) for image in (clean, changed))
        return prediction + (after - before).to(prediction.dtype)

    tracker.on_guided.append(guided)
    return Removal(lambda: tracker.on_guided.remove(guided))


def _fire(tracker: StepTracker, taps: Sequence[Tap], value: Tensor, *, like: Tensor) -> Tensor:
    """Fire on a value of which there is one for each image, whatever the branches."""
    rows = ((GUIDED, slice(0, like.shape[0])),)
    lengths = {"img": like.shape[1]} if like.ndim == 3 else {}
    return fire(taps, value, tracker.last_evaluation(), lengths, rows=rows)


SCHEDULER: dict[str, Callable[[StepTracker, Sequence[Tap]], Handle]] = {
    "sample": _sample,
    "guided_pred": _guided_prediction,
    "pred_x0": _clean_image,
}
"""What fires at each of the scheduler's points."""

OUTSIDE: dict[type, Callable[[StepTracker, Any, Sequence[Tap]], Handle]] = {
    AtModule: at_module,
    AtScheduler: at_scheduler,
}
"""What fires at each kind of source that lies in no block."""
