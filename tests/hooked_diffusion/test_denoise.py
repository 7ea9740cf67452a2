"""Single evaluations: the noise level by every scheduler, and a scheduler left as it was."""

from __future__ import annotations

import copy
import importlib.util
import inspect
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from diffusion_lens import HookedDiffusion, Site
from diffusion_lens.errors import EngineError
from tests.engine.test_noise import NEED_TORCHSDE, UNDERSTOOD
from tests.pipelines import fresh_pipe, golden, short

LEVEL = 0.5
NO_TRAINING_TIMESTEPS = (
    "CosineDPMSolverMultistepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
)
"""Schedulers whose timesteps are functions of sigma, so that a noise level says nothing."""

NOT_FOR_SD = ("CogVideoXDPMScheduler", "RePaintScheduler", "UnCLIPScheduler")
"""Schedulers that Stable Diffusion cannot be run with: their steps or schedules need more."""

FLOW = [name for name in UNDERSTOOD if name.startswith("FlowMatch")]
OF_SD = [name for name in UNDERSTOOD if name not in (*NO_TRAINING_TIMESTEPS, *NOT_FOR_SD, *FLOW)]


def put_in(pipe: Any, name: str, **more: Any) -> Any:
    """Give a pipeline another scheduler with the same training schedule."""
    if name in NEED_TORCHSDE and importlib.util.find_spec("torchsde") is None:
        pytest.skip("torchsde is not installed")
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **more)
    return pipe.scheduler


def settings_of(family: str, *, steps: int = 5, **more: Any) -> dict[str, Any]:
    found = short(family, steps=steps, **more)
    return {key: value for key, value in found.items() if key not in ("latents", "output_type")}


def clean_of(kind: str, guided: Tensor, latents: Tensor, alpha: float) -> Tensor:
    """Song et al. 2020 and Salimans & Ho 2022, for latents of variance 1."""
    signal, noise = alpha**0.5, (1 - alpha) ** 0.5
    if kind == "epsilon":
        return (latents - noise * guided) / signal
    return guided if kind == "sample" else signal * latents - noise * guided


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", OF_SD)
def test_a_noise_level_is_the_same_by_every_scheduler(name: str, kind: str) -> None:
    pipe = fresh_pipe("sd")
    scheduler = put_in(pipe, name, prediction_type=kind)
    takes = inspect.signature(type(scheduler).__init__).parameters
    if "prediction_type" not in takes and kind != "epsilon":
        pytest.skip(f"{name} predicts noise alone")
    try:
        scheduler.set_timesteps(5)
    except ValueError:
        pytest.skip(f"{name} does not take {kind}")
    latents = golden("sd").inputs["latents"]
    found = HookedDiffusion(pipe).denoise(latents, noise_level=LEVEL, **settings_of("sd"))
    alpha = float(scheduler.alphas_cumprod[500])
    ratio = found.level.noise / found.level.signal
    assert found.timestep == 500
    assert ratio == pytest.approx(((1 - alpha) / alpha) ** 0.5, rel=1e-5)
    of_variance_one = latents * (alpha**0.5 / found.level.signal)
    expected = clean_of(kind, found.guided, of_variance_one, alpha)
    torch.testing.assert_close(found.pred_x0, expected, rtol=1e-4, atol=1e-4)


def test_a_hook_is_told_the_noise_level_that_the_prediction_has() -> None:
    pipe = fresh_pipe("sd")
    put_in(pipe, "DPMSolverMultistepScheduler", use_karras_sigmas=True)
    model, sigmas = HookedDiffusion(pipe), []
    alpha = float(pipe.scheduler.alphas_cumprod[500])
    site = Site("hook_noise_pred", branch="cond")
    with model.hooks([(site, lambda _value, hook: sigmas.append(hook.sigma))]):
        model.denoise(golden("sd").inputs["latents"], noise_level=LEVEL, **settings_of("sd"))
    assert sigmas == pytest.approx([(1 - alpha) ** 0.5], rel=1e-5)


@pytest.mark.parametrize("name", [*FLOW, "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_a_noise_level_is_the_share_of_noise_with_flow_matching(name: str) -> None:
    pipe = fresh_pipe("sd3")
    more = {} if name in FLOW else {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    put_in(pipe, name, **more)
    latents = golden("sd3").inputs["latents"]
    model = HookedDiffusion(pipe)
    found = model.denoise(latents, noise_level=LEVEL, **settings_of("sd3"))
    assert (found.level.signal, found.level.noise) == pytest.approx((0.5, 0.5), rel=1e-6)
    torch.testing.assert_close(found.pred_x0, latents - 0.5 * found.guided)


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
def test_a_noise_level_is_refused_where_timesteps_are_functions_of_sigma(name: str) -> None:
    pipe = fresh_pipe("sdxl")
    pipe.scheduler = getattr(diffusers, name)()
    latents = golden("sdxl").inputs["latents"]
    with pytest.raises(EngineError, match="no noise level for timestep"):
        HookedDiffusion(pipe).denoise(latents, noise_level=LEVEL, **settings_of("sdxl"))


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")
@pytest.mark.parametrize(
    "name",
    [
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "UniPCMultistepScheduler",
        "DEISMultistepScheduler",
        "LMSDiscreteScheduler",
        "HeunDiscreteScheduler",
        "PNDMScheduler",
        "DDIMScheduler",
    ],
)
def test_a_loop_of_denoise_and_steps_is_the_pipelines_own(name: str) -> None:
    pipe = fresh_pipe("sd")
    scheduler = put_in(pipe, name)
    given = short("sd", steps=6)
    expected = pipe(**given).images
    settings = settings_of("sd", steps=6)
    model = HookedDiffusion(pipe)
    scheduler.set_timesteps(6)
    latents = golden("sd").inputs["latents"] * scheduler.init_noise_sigma
    for step, timestep in enumerate(scheduler.timesteps.clone()):
        guided = model.denoise(latents, step=step, **settings).guided
        scheduler.scale_model_input(latents, timestep)
        latents = scheduler.step(guided, timestep, latents).prev_sample
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", OF_SD)
def test_denoise_leaves_the_scheduler_as_it_was(name: str) -> None:
    pipe = fresh_pipe("sd")
    scheduler = put_in(pipe, name)
    scheduler.set_timesteps(4)
    model, latents = HookedDiffusion(pipe), golden("sd").inputs["latents"]
    seen: list[str] = []
    points = [Site(point, branch="cond") for point in ("hook_latents", "hook_guided_pred")]
    before = copy.deepcopy(vars(scheduler))
    owned = {key: id(value) for key, value in vars(scheduler).items()}
    with model.hooks([(site, lambda _value, hook: seen.append(hook.name)) for site in points]):
        model.denoise(latents, step=3, **settings_of("sd"))
        model.denoise(latents, noise_level=LEVEL, **settings_of("sd"))
    assert seen == ["hook_latents", "hook_guided_pred"] * 2
    assert {key: id(value) for key, value in vars(scheduler).items()} == owned
    torch.testing.assert_close(
        {key: value for key, value in vars(scheduler).items() if isinstance(value, Tensor)},
        {key: value for key, value in before.items() if isinstance(value, Tensor)},
        rtol=0,
        atol=0,
        equal_nan=True,
    )


def test_a_scheduler_is_left_as_it_was_after_an_error() -> None:
    pipe = fresh_pipe("sd")
    scheduler = put_in(pipe, "UniPCMultistepScheduler")
    scheduler.set_timesteps(4)
    scheduler.model_outputs[-1] = history = torch.ones(1)
    owned = {key: id(value) for key, value in vars(scheduler).items()}
    model = HookedDiffusion(pipe)

    def fails(_value: Tensor, _hook: Any) -> None:
        raise ZeroDivisionError

    with model.hooks([("hook_latents", fails)]), pytest.raises(ZeroDivisionError):
        model.denoise(golden("sd").inputs["latents"], step=1, **settings_of("sd"))
    assert {key: id(value) for key, value in vars(scheduler).items()} == owned
    assert scheduler.model_outputs[-1] is history
