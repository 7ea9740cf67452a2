"""Every scheduler of diffusers: what a prediction implies is right by the scheduler's own account,
or refused."""

from __future__ import annotations

import importlib.util
import inspect
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from diffusion_lens import HookedDiffusion
from diffusion_lens.engine.noise import NoiseLevel, Schedule, noise_level
from diffusion_lens.errors import EngineError
from tests.pipelines import fresh_pipe, short

STEPS = 6
KINDS = ("epsilon", "v_prediction", "sample", "flow_prediction")
UNDERSTOOD = (
    "CogVideoXDDIMScheduler",
    "CogVideoXDPMScheduler",
    "CosineDPMSolverMultistepScheduler",
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "HeunDiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "RePaintScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
    "UnCLIPScheduler",
)
NO_LATENTS = ("AmusedScheduler", "VQDiffusionScheduler", "RFD4ProteinaScheduler")
"""Schedulers over tokens and atoms."""

NEED_TORCHSDE = ("CosineDPMSolverMultistepScheduler", "DPMSolverSDEScheduler")
WANTED = {"clip_sample": False, "set_alpha_to_one": True, "final_sigmas_type": "zero"}
"""A pred_x0 is the one before clipping, and a schedule that ends at noise 0 ends at the image."""

NAMES = sorted(
    name for name in dir(diffusers) if name.endswith("Scheduler") and name not in NO_LATENTS
)


def _made(name: str, kind: str) -> Any:
    """A scheduler that takes a kind of prediction, or None."""
    made = getattr(diffusers, name)
    takes = inspect.signature(made.__init__).parameters
    given: dict[str, Any] = {"prediction_type": kind}
    if kind == "flow_prediction":
        given["use_flow_sigmas"] = True
    if not set(given) <= set(takes):
        given = {}
        if kind != KINDS[0]:
            return None
    wanted = {} if "Inverse" in name else WANTED
    return made(**given, **{key: value for key, value in wanted.items() if key in takes})


class Oracle:
    """Drives a scheduler with the predictions that imply one clean latent.

    Attributes:
        clean: The latent.
        own: What the scheduler itself took for the clean latent, where it says it.
        noises: The Gaussian noise that each of its latents holds.
        last: Its last latent.
    """

    def __init__(self, scheduler: Any) -> None:
        generator = torch.Generator().manual_seed(0)
        self.clean = torch.randn(1, 4, 4, 4, generator=generator, dtype=torch.float64) * 0.5
        self.own: list[tuple[Tensor, NoiseLevel]] = []
        self.noises: list[Tensor] = []
        sample = torch.randn(1, 4, 4, 4, generator=generator, dtype=torch.float64)
        sample = sample * float(getattr(scheduler, "init_noise_sigma", 1.0))
        schedule = Schedule.of(scheduler)
        converted = _listening(scheduler)
        takes = inspect.signature(scheduler.step).parameters
        before: Any = None
        for index, timestep in enumerate(scheduler.timesteps):
            sigma = None if schedule.sigmas is None else schedule.sigmas[index]
            level = noise_level(scheduler, schedule.timesteps[index], sigma)
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(sample, timestep)
            prediction = level.prediction_for(self.clean, sample)
            assert torch.allclose(level.clean(prediction, sample), self.clean, atol=1e-4)
            self.noises.append((sample - level.signal * self.clean) / level.noise)
            arguments = {"model_output": prediction, "timestep": timestep, "sample": sample}
            more = {
                "generator": generator,
                "eta": 0.0,
                "old_pred_original_sample": before,
                "timestep_back": scheduler.timesteps[index - 1] if index else None,
                "original_image": self.clean,
                "mask": torch.zeros_like(self.clean),
            }
            arguments |= {key: value for key, value in more.items() if key in takes}
            out = scheduler.step(**arguments)
            before = out[1] if isinstance(out, tuple) else None
            own = getattr(out, "pred_original_sample", converted[-1] if converted else None)
            if own is not None:
                self.own.append((own, level))
            sample = out[0] if isinstance(out, tuple) else out.prev_sample
        self.last = sample

    def off(self) -> float:
        """How far the scheduler's own clean latents are from the one, in its own rounding."""
        errors = [
            float((own - self.clean).abs().max()) / (1 + level.noise / max(level.signal, 1e-3))
            for own, level in self.own
        ]
        return max(errors, default=0.0)

    def drifts(self) -> float:
        """How much the noise changes along the way of a sampler that adds none."""
        return max(float((noise - self.noises[0]).abs().max()) for noise in self.noises)


def _listening(scheduler: Any) -> list[Tensor]:
    """What the scheduler's conversion of a prediction gives, where that is a clean latent."""
    found: list[Tensor] = []
    name = "precondition_outputs"
    if not hasattr(scheduler, name):
        name = "convert_model_output"
    if not hasattr(scheduler, name) or "DEIS" in type(scheduler).__name__:
        return found
    original = getattr(scheduler, name)

    def convert(*args: Any, **kwargs: Any) -> Tensor:
        found.append(original(*args, **kwargs))
        return found[-1]

    setattr(scheduler, name, convert)
    return found


def _refused(name: str, scheduler: Any) -> bool:
    steps = 2 if name == "SCMScheduler" else STEPS
    try:
        scheduler.set_timesteps(steps)
        schedule = Schedule.of(scheduler)
        first, sigma = schedule.timesteps[0], (schedule.sigmas or [None])[0]
    except (KeyError, TypeError, AttributeError):  # schedules in several stages, or none
        first, sigma = 500.0, 0.5
    try:
        noise_level(scheduler, first, sigma)
    except EngineError:
        return True
    return False


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Should have t:UserWarning")  # torchsde on rounding
@pytest.mark.parametrize("name", NAMES)
def test_a_scheduler_is_right_by_its_own_account_or_refused(name: str) -> None:
    if name in NEED_TORCHSDE and importlib.util.find_spec("torchsde") is None:
        pytest.skip("torchsde is not installed")
    checked = [kind for kind in KINDS if _right_or_refused(name, kind)]
    assert checked


def _right_or_refused(name: str, kind: str) -> bool:
    """Check one kind of prediction; False where the scheduler itself does not take it."""
    scheduler = _made(name, kind)
    if scheduler is None:
        return False
    if name not in UNDERSTOOD:
        assert _refused(name, scheduler)
        return True
    scheduler.set_timesteps(STEPS)
    try:
        oracle = Oracle(scheduler)
    except (ValueError, NotImplementedError) as error:
        assert "prediction" in str(error).lower()
        return False
    except EngineError as error:
        assert kind == "flow_prediction" and "prediction_type" in str(error)
        return False
    if name == "PNDMScheduler" and kind == "v_prediction":
        return True  # it mixes velocities of several levels, which no one image implies
    ends = float((oracle.last - oracle.clean).abs().max())
    evidence = min(ends, oracle.drifts()) if len(oracle.own) < STEPS else oracle.off()
    assert evidence < 1e-4, (kind, ends, oracle.drifts(), oracle.off())
    return True


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_pred_x0_is_preconditioned_where_the_scheduler_does_it(name: str, kind: str) -> None:
    pipe = fresh_pipe("sdxl")
    pipe.scheduler = getattr(diffusers, name)(prediction_type=kind)
    own: list[Tensor] = []
    original = pipe.scheduler.precondition_outputs

    def convert(*args: Any) -> Tensor:
        own.append(original(*args))
        return own[-1]

    pipe.scheduler.precondition_outputs = convert
    settings = {key: value for key, value in short("sdxl", steps=3).items() if key != "latents"}
    seen: list[Tensor] = []
    shown = [("hook_pred_x0", lambda clean, hook: seen.append(clean.clone()))]
    out = HookedDiffusion(pipe).run_with_hooks(fwd_hooks=shown, **settings)
    assert len(seen) == 3
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(seen, own, strict=True))

    target = torch.full_like(seen[0], 0.25)
    own.clear()
    edited = HookedDiffusion(pipe).run_with_hooks(
        fwd_hooks=[("hook_pred_x0", lambda clean, hook: target)], **settings
    )
    assert all(torch.allclose(clean, target, atol=1e-4) for clean in own)
    assert out.latents is not None and edited.latents is not None
    assert not torch.allclose(out.latents, edited.latents)


def test_an_edm_timestep_is_not_taken_for_a_training_timestep() -> None:
    with pytest.raises(EngineError, match="EDMEulerScheduler has no noise level for timestep 500"):
        noise_level(diffusers.EDMEulerScheduler(), 500)


def test_a_prediction_that_does_not_fit_the_schedule_is_refused() -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True)
    with pytest.raises(EngineError, match="prediction_type='epsilon' and use_flow_sigmas=True"):
        noise_level(scheduler, 500)


def test_inverse_ddim_is_refused() -> None:
    scheduler = diffusers.DDIMInverseScheduler()
    with pytest.raises(EngineError, match="the timestep before the one it names; use Euler"):
        noise_level(scheduler, 500)
