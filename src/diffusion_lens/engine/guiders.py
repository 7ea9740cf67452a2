"""Guidance branches that a guider of diffusers tells.

A guider prepares one batch for each prediction that it wants at a step, with the prediction's name
on it; then the pipeline runs the denoiser once for each, between `prepare_models` and
`cleanup_models`, with which some guiders change the denoiser for that one evaluation.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from diffusion_lens.engine.observing import observed
from diffusion_lens.errors import EngineError, listing

if TYPE_CHECKING:
    from diffusion_lens.engine.steps import StepTracker

CFG = {"pred_cond": "cond", "pred_uncond": "uncond"}

GUIDERS: Mapping[str, Mapping[str, str]] = {
    "ClassifierFreeGuidance": CFG,
    "ClassifierFreeZeroStarGuidance": CFG,
    "AdaptiveProjectedGuidance": CFG,
    "AdaptiveProjectedMixGuidance": CFG,
    "FrequencyDecoupledGuidance": CFG,
    "MagnitudeAwareGuidance": CFG,
    "TangentialClassifierFreeGuidance": CFG,
    "AutoGuidance": CFG,
    "SkipLayerGuidance": CFG | {"pred_cond_skip": "skip"},
    "PerturbedAttentionGuidance": CFG | {"pred_cond_skip": "perturbed"},
    "SmoothedEnergyGuidance": CFG | {"pred_cond_seg": "perturbed"},
}
"""For each guider the branch of each of its predictions. LTX-2's has one for sound beside it."""

WEAKENING = {
    "AutoGuidance": "uncond",
    "SkipLayerGuidance": "skip",
    "PerturbedAttentionGuidance": "perturbed",
    "SmoothedEnergyGuidance": "perturbed",
}
"""Guiders that change the denoiser, each with the branch for which it does."""


@dataclass(eq=False)
class Prepared:
    """The batches that a guider prepared for one step.

    Attributes:
        guider: Class of the guider.
        branches: The branch of each batch, in the order in which they are evaluated.
        at: Which one is evaluated; -1 before the first.
        running: Whether the guider has made the denoiser ready for it, and not yet undone that.
        changed: Paths of the modules that it changed for it.
    """

    guider: str
    branches: tuple[str, ...]
    at: int = -1
    running: bool = False
    changed: tuple[str, ...] = ()

    def branch(self, pipe: Any) -> str:
        """The branch of the evaluation that begins.

        Raises:
            EngineError: If it is none of those that the guider prepared.
        """
        if not self.running or self.at >= len(self.branches):
            raise EngineError(
                f"{type(pipe).__name__} evaluates its denoiser beside the batches "
                f"{self.branches} that its {self.guider} prepared for this step, so that the "
                "branch is not known; evaluate it between `guider.prepare_models` and "
                "`guider.cleanup_models`, once for each batch"
            )
        return self.branches[self.at]


def guiders_of(pipe: Any) -> list[Any]:
    """The guiders of a pipeline: none, one, or one for each denoiser (Wan 2.2)."""
    known = sys.modules.get("diffusers.guiders.guider_utils")
    if known is None or pipe is None:
        return []
    found = (one for one in vars(pipe).values() if isinstance(one, known.BaseGuidance))
    return list({id(one): one for one in found}.values())


def branches_of(guider: Any) -> Mapping[str, str]:
    """The branch of each prediction of a guider.

    Raises:
        EngineError: If its class is not known.
    """
    for kind in type(guider).__mro__:
        if kind.__name__ in GUIDERS:
            return GUIDERS[kind.__name__]
    raise EngineError(
        f"{type(guider).__name__} is no guider whose predictions are described, so that hooks "
        f"could not tell its branches; known are {listing(list(GUIDERS), most=20)}: put one of "
        "those in with `pipe.update_components(guider=…)`, or derive yours from the one whose "
        "predictions it makes"
    )


def weakened_branch(guider: Any) -> str | None:
    """The branch for which a guider changes the denoiser, None where it changes nothing."""
    kinds = (kind.__name__ for kind in type(guider).__mro__)
    return next((WEAKENING[kind] for kind in kinds if kind in WEAKENING), None)


def begin_anew(guider: Any) -> None:
    """Take a guider back to where it is before its first run.

    It keeps the last step of the run before, by which encoder blocks decide whether the negative
    prompt is needed: one that guides no more at that step would get none, and fail at the next.
    """
    guider._step = guider._num_inference_steps = guider._timestep = None


class FollowedGuider:
    """Follows one guider while hooks are on."""

    def __init__(self, guider: Any, tracker: StepTracker) -> None:
        """Follow it for this tracker.

        Raises:
            EngineError: If its class is not known.
        """
        self.guider = guider
        self.tracker = tracker
        self.branches = branches_of(guider)
        self.weakened = weakened_branch(guider)
        self.denoiser: nn.Module | None = None

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Follow it while the context is open."""
        with contextlib.ExitStack() as undo:
            for method in ("prepare_inputs", "prepare_inputs_from_block_state"):
                undo.enter_context(observed(self.guider, method, self._prepare_inputs))
            undo.enter_context(observed(self.guider, "prepare_models", self._prepare_models))
            undo.enter_context(observed(self.guider, "cleanup_models", self._cleanup_models))
            self.tracker.on_end.insert(0, self._leave_denoiser)  # before hooks are put on anew
            undo.callback(self.tracker.on_end.remove, self._leave_denoiser)
            yield

    def _prepare_inputs(self, original: Callable, *args: Any, **kwargs: Any) -> Any:
        batches = original(*args, **kwargs)
        if self._is_the_loops_own():
            self._refuse_other_text(batches)
            names = [getattr(batch, self.guider._identifier_key) for batch in batches]
            self.tracker.run.prepared = Prepared(self._name, tuple(map(self._branch, names)))
        return batches

    def _prepare_models(self, original: Callable, denoiser: nn.Module) -> Any:
        prepared = self.tracker.run.prepared
        if prepared is None or not self._is_the_loops_own():
            return original(denoiser)
        prepared.at += 1
        prepared.running, self.denoiser = True, denoiser
        if self.weakened is None:
            return original(denoiser)
        module = getattr(denoiser, "_orig_mod", denoiser)  # what `torch.compile` wraps
        before = set(_registered(module))
        result = original(denoiser)
        added = [one for one in _registered(module) if one not in before]
        prepared.changed = tuple(dict.fromkeys(path for path, _ in added))
        self._warn_where_nothing_changed(prepared)
        return result

    def _cleanup_models(self, original: Callable, denoiser: nn.Module) -> Any:
        result = original(denoiser)
        self.denoiser = None
        prepared = self.tracker.run.prepared
        if self._is_the_loops_own() and prepared is not None:
            for listener in self.tracker.on_prediction:
                listener(self.tracker.last_evaluation())
            prepared.running, prepared.changed = False, ()
        return result

    def _leave_denoiser(self) -> None:
        """Undo what the guider left behind where an evaluation failed: diffusers does not."""
        if self.denoiser is not None:
            self.guider.cleanup_models(self.denoiser)
            self.denoiser = None

    def _is_the_loops_own(self) -> bool:
        return self.tracker.run.in_pipeline and not self.tracker.hooks_running

    @property
    def _name(self) -> str:
        return type(self.guider).__name__

    def _branch(self, prediction: str) -> str:
        if prediction not in self.branches:
            raise EngineError(
                f"{self._name} prepares a prediction {prediction!r}, known of it are "
                f"{listing(list(self.branches))}, so that hooks could not tell its branch"
            )
        return self.branches[prediction]

    def _refuse_other_text(self, batches: Sequence[Any]) -> None:
        """Refuse a batch of the prompt's that was filled with what is the negative prompt's.

        So do those of diffusers 0.42.1 where a third prediction comes without the second one, and
        they leave the denoiser unchanged as well: the name says what is not computed.

        Raises:
            EngineError: Naming the prediction, and how to have it computed.
        """
        held = [{**vars(batch)} for batch in batches]
        names = [one.pop(self.guider._identifier_key) for one in held]
        for name, one in zip(names, held, strict=True):
            if not name.startswith("pred_cond_"):
                continue
            others = [key for key, value in one.items() if value is not held[0].get(key)]
            if others:
                raise EngineError(
                    f"{self._name} fills its prediction {name!r} with other {listing(others)} than "
                    "the prompt's, as it does at steps without classifier-free guidance, and "
                    "leaves the denoiser as it is: it would not be what its name says. Keep "
                    "guidance_scale off 1 and `start` to `stop` around the steps of the third "
                    "prediction"
                )

    def _warn_where_nothing_changed(self, prepared: Prepared) -> None:
        branch = prepared.branches[prepared.at] if prepared.at < len(prepared.branches) else ""
        further = branch == self.weakened != "uncond"
        if further and not prepared.changed and not self.tracker.run.unchanged_told:
            self.tracker.run.unchanged_told = True
            warnings.warn(
                f"{self._name} left the denoiser as it is for its branch {branch!r}, which is the "
                "conditional one once more (diffusers 0.42.1: SmoothedEnergyGuidance never blurs)",
                stacklevel=2,
            )


def swapped_by(denoiser: nn.Module, changed: Sequence[str]) -> str | None:
    """The module whose stand-in hands image and text on in each other's place, if there is one.

    diffusers leaves a block out by returning its image and then its text, in blocks that return
    them the other way round as well.

    Args:
        denoiser: The denoiser.
        changed: Paths of the modules that a guider changed.
    """
    for path in changed:
        for hook in vars(denoiser.get_submodule(path))["_diffusers_hook"].hooks.values():
            order = getattr(hook, "_metadata", None)
            left_out = getattr(hook, "dropout", None) == 1.0
            if left_out and getattr(order, "return_encoder_hidden_states_index", None) == 0:
                return path
    return None


def _registered(denoiser: nn.Module) -> Iterator[tuple[str, str]]:
    """Every hook of diffusers' own on a module: the module's path, and the hook's name."""
    for path, module in denoiser.named_modules():
        registry = module.__dict__.get("_diffusers_hook")
        for name in () if registry is None else registry.hooks:
            yield path, name
