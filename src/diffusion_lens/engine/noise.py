"""Noise schedules in one form: a latent is `signal * clean + noise * gaussian`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from diffusion_lens.errors import EngineError

BETWEEN = "evaluates between its own sigmas, whose noise levels are not described here"
ELSEWHERE = {
    "KDPM2DiscreteScheduler": BETWEEN,
    "KDPM2AncestralDiscreteScheduler": BETWEEN,
    "DPMSolverSDEScheduler": BETWEEN,
    "DDIMInverseScheduler": "takes its latents for those of the timestep before the one it names",
    "HeliosScheduler": "has a schedule for each resolution, which is not described here",
    "HeliosDMDScheduler": "has a schedule for each resolution, which is not described here",
}
"""Schedulers of diffusers whose timesteps do not tell the noise level of their latents."""

_ALPHAS: WeakKeyDictionary[Any, tuple[Tensor, int | None, Tensor]] = WeakKeyDictionary()
"""For each scheduler its alphas, their version, and what they were on the CPU."""


@dataclass(frozen=True)
class Schedule:
    """A scheduler's timesteps as numbers, read once when a run begins.

    Attributes:
        timesteps: The timesteps.
        sigmas: The sigma of each, where the scheduler has them.
        place: Address of the memory that the scheduler's timesteps lie in.
        offset: Where in that memory they begin.
    """

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...] | None
    place: int
    offset: int

    @classmethod
    def of(cls, scheduler: Any) -> Schedule:
        """Read a scheduler whose timesteps are set."""
        count = len(scheduler.timesteps)
        found = getattr(scheduler, "sigmas", None)
        # One for each timestep, most with the last one's target behind: others do not pair.
        sigmas = []
        if isinstance(found, Tensor) and len(found) in (count, count + 1):
            sigmas = found[:count].tolist()
        return cls(
            tuple(scheduler.timesteps.tolist()),
            tuple(sigmas) if len(sigmas) == count else None,
            scheduler.timesteps.untyped_storage().data_ptr(),
            int(scheduler.timesteps.storage_offset()),
        )

    def index(self, timestep: Any, counted: int | None) -> int | None:
        """Where on the schedule a timestep lies, without waiting for the device.

        Loops hand on views of the scheduler's own tensor, whose offset is the index; what was
        computed from them goes by the count of steps.

        Args:
            timestep: What the loop handed on.
            counted: The index by the count of steps, where the scheduler says where a run began.
        """
        if isinstance(timestep, Tensor) and timestep.untyped_storage().data_ptr() == self.place:
            return int(timestep.storage_offset()) - self.offset
        known = counted is not None and counted < len(self.timesteps)
        return counted if known else None


@dataclass(frozen=True)
class NoiseLevel:
    """Where on a scheduler's schedule a latent lies.

    Attributes:
        signal: Factor on the clean latent, in the units of the pipeline's latents.
        noise: Factor on the Gaussian noise, likewise; the scheduler's sigma, or 1 minus that where
            it counts the data.
        prediction: What the denoiser predicts: `epsilon`, `v_prediction`, `sample`, `flow` (towards
            the noise) or `flow_to_data`.
        data: The data's standard deviation that an EDM scheduler preconditions with; None
            elsewhere.
    """

    signal: float
    noise: float
    prediction: str
    data: float | None = None

    def clean(self, prediction: Tensor, sample: Tensor) -> Tensor:
        """The clean latent that a prediction implies, before a scheduler's clipping."""
        if self.data is not None:
            skip, out = self._preconditioning(self.data)
            return skip * sample + out * prediction
        if self.prediction == "sample":
            return prediction
        if self.prediction == "flow":
            return sample - self.noise * prediction
        if self.prediction == "flow_to_data":
            return sample + self.noise * prediction
        if self.prediction == "epsilon":
            return (sample - self.noise * prediction) / self.signal
        scale = (self.signal**2 + self.noise**2) ** 0.5
        signal, noise = self.signal / scale, self.noise / scale
        return signal * (sample / scale) - noise * prediction

    def prediction_for(self, clean: Tensor, sample: Tensor) -> Tensor:
        """The prediction that implies a clean latent: the inverse of `clean`."""
        if self.data is not None:
            skip, out = self._preconditioning(self.data)
            return (clean - skip * sample) / out
        if self.prediction == "sample":
            return clean
        if self.prediction == "flow":
            return (sample - clean) / self.noise
        if self.prediction == "flow_to_data":
            return (clean - sample) / self.noise
        if self.prediction == "epsilon":
            return (sample - self.signal * clean) / self.noise
        scale = (self.signal**2 + self.noise**2) ** 0.5
        signal, noise = self.signal / scale, self.noise / scale
        return (signal * (sample / scale) - clean) / noise

    def _preconditioning(self, data: float) -> tuple[float, float]:
        """$c_{skip}$ and $c_{out}$ of arXiv 2206.00364, table 1; v counts the other way round."""
        variance = self.noise**2 + data**2
        out = self.noise * data / variance**0.5
        return data**2 / variance, -out if self.prediction == "v_prediction" else out


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler follows flow matching."""
    return "FlowMatch" in type(scheduler).__name__ or bool(
        scheduler.config.get("use_flow_sigmas", False)
    )


def _mixes(scheduler: Any) -> bool:
    """Whether latents and noise are mixed; Cosmos 2 gives flow matching the sigmas of EDM."""
    own = scheduler.config.get("sigma_max") if "FlowMatch" in type(scheduler).__name__ else None
    return own is None or own <= 1


def counts_data(scheduler: Any) -> bool:
    """Whether sigmas and timesteps are the share of the data, which grows from 0 (Mochi)."""
    return bool(scheduler.config.get("invert_sigmas", False))


def timestep_at(scheduler: Any, level: float) -> float:
    """The timestep at a level of noise, from 0 (none) to 1 (nothing else)."""
    share = 1 - level if counts_data(scheduler) else level
    return share * scheduler.config.num_train_timesteps


def _refuse_redrawn(scheduler: Any) -> None:
    """Refuse what takes sigmas for the share of the noise, though they count the data."""
    name = type(scheduler).__name__
    if name != "FlowMatchEulerDiscreteScheduler" or scheduler.config.stochastic_sampling:
        raise EngineError(
            f"{name} with invert_sigmas=True is understood only as FlowMatchEulerDiscreteScheduler "
            "with stochastic_sampling=False, as Mochi has it; set that to read sigma, hook_pred_x0 "
            "or single evaluations"
        )


def scales_input(scheduler: Any) -> bool:
    """Whether its latents are unscaled (`clean + sigma * noise`), as with Euler, LMS and Heun."""
    if not hasattr(scheduler, "sigmas"):
        return False
    # Heun and KDPM2 lack the flag that Euler has; their first latents tell, which are not N(0, 1).
    unscaled = float(getattr(scheduler, "init_noise_sigma", 1.0)) != 1.0
    return unscaled or hasattr(scheduler, "is_scale_input_called")


def noise_level(scheduler: Any, timestep: float, sigma: float | None = None) -> NoiseLevel:
    """The noise level of a timestep, in the units of the pipeline's latents.

    Args:
        scheduler: The scheduler.
        timestep: The timestep, between training timesteps, too.
        sigma: The scheduler's own sigma there, where it has one.

    Raises:
        EngineError: If the scheduler's noise levels are not certain.
    """
    kind = _prediction(scheduler)
    if hasattr(scheduler, "precondition_outputs"):
        if sigma is None:
            raise EngineError(
                f"{type(scheduler).__name__} has no noise level for timestep {timestep:g}: its own "
                "timesteps are functions of sigma, not training timesteps; read sigma and "
                "hook_pred_x0 within its own steps (`model.denoise(latents, step=…)`)"
            )
        return NoiseLevel(1.0, sigma, kind, scheduler.config.sigma_data)
    if is_flow(scheduler):
        known = timestep / scheduler.config.num_train_timesteps if sigma is None else sigma
        if not _mixes(scheduler):
            if sigma is None:
                raise EngineError(
                    f"this {type(scheduler).__name__} has sigmas above 1 (Cosmos 2), which add "
                    "noise to whole latents, so that no share of noise makes a level; use its own "
                    "steps (`model.denoise(latents, step=…)`)"
                )
            return NoiseLevel(1.0, known, "flow")
        if counts_data(scheduler):
            _refuse_redrawn(scheduler)
            return NoiseLevel(known, 1.0 - known, "flow_to_data")
        return NoiseLevel(1.0 - known, known, "flow")
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None:
        raise EngineError(
            f"{type(scheduler).__name__} has no noise schedule that is understood here "
            "(alphas_cumprod, EDM or flow matching); use one of diffusers' standard schedulers"
        )
    if sigma is not None:
        signal = 1.0 if scales_input(scheduler) else (1 + sigma**2) ** -0.5
        return NoiseLevel(signal, sigma * signal, kind)
    alphas = _on_cpu(scheduler, alphas)
    position = min(max(float(timestep), 0.0), len(alphas) - 1)
    below = int(position)
    weight = position - below
    if scales_input(scheduler):
        sigmas = ((1 - alphas) / alphas).sqrt()
        above = sigmas[min(below + 1, len(sigmas) - 1)]
        return NoiseLevel(1.0, float(torch.lerp(sigmas[below], above, weight)), kind)
    alpha = float(torch.lerp(alphas[below], alphas[min(below + 1, len(alphas) - 1)], weight))
    return NoiseLevel(alpha**0.5, (1 - alpha) ** 0.5, kind)


def _on_cpu(scheduler: Any, alphas: Tensor) -> Tensor:
    """The alphas in double precision: read from the device once, not wherever a hook asks."""
    version = None if alphas.is_inference() else alphas._version  # which tells of writes in place
    kept = _ALPHAS.get(scheduler)
    if version is None or kept is None or kept[0] is not alphas or kept[1] != version:
        kept = _ALPHAS[scheduler] = (alphas, version, alphas.double().cpu())
    return kept[2]


def _prediction(scheduler: Any) -> str:
    """What the denoiser predicts.

    Raises:
        EngineError: Where that, or where on its schedule it is asked, is not certain.
    """
    name = type(scheduler).__name__
    kind = scheduler.config.get("prediction_type", "epsilon")
    reasons = [ELSEWHERE.get(base.__name__) for base in type(scheduler).__mro__]
    for reason in filter(None, reasons):
        raise EngineError(
            f"{name} {reason}; use Euler, Heun, DDIM or DPM-Solver to read sigma, hook_pred_x0 or "
            "single evaluations"
        )
    flow = is_flow(scheduler)
    expected = ("flow_prediction",) if flow else ("epsilon", "v_prediction", "sample")
    if "FlowMatch" not in name and kind not in expected:
        raise EngineError(
            f"{name} has prediction_type={kind!r} and "
            f"use_flow_sigmas={scheduler.config.get('use_flow_sigmas', False)}, where one of "
            f"{expected} is understood; set them alike to read sigma, hook_pred_x0 or single "
            "evaluations"
        )
    return kind
