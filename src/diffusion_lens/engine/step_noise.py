"""Noise that schedulers draw in their steps, made to come from the seeds of the run."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion_lens.engine.observing import observed


@contextlib.contextmanager
def seeded_steps(pipe: Any, generators: Sequence[torch.Generator]) -> Iterator[None]:
    """Let a scheduler's steps draw from a run's generators while the context is open.

    Several pipelines (Flux, SD3) do not hand their generators to the scheduler, and a few
    schedulers take none: they draw from torch's global generator, so that two equal calls would
    differ. What takes generators gets those of the samples; else the global generator is put in a
    state of the run's own for the step alone, and hooks draw from it as ever.

    Args:
        pipe: The pipeline.
        generators: One for each sample.
    """
    scheduler = getattr(pipe, "scheduler", None)
    if scheduler is None or not hasattr(scheduler, "step"):
        yield
        return
    takes = "generator" in inspect.signature(scheduler.step).parameters
    seed = generators[0].initial_seed()
    states: dict[torch.device, Tensor] = {}

    def step(original: Callable, *args: Any, **kwargs: Any) -> Any:
        if takes:
            given = inspect.signature(original).bind(*args, **kwargs).arguments
            if given.get("generator") is None:
                kwargs = {**kwargs, "generator": list(generators)}
        tensors = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
        devices = {one.device for one in tensors if one.device.type != "cpu"}
        with _global_state(states, seed, devices):
            return original(*args, **kwargs)

    with observed(scheduler, "step", step, innermost=True):
        yield


@contextlib.contextmanager
def _global_state(
    states: dict[torch.device, Tensor], seed: int, devices: set[torch.device]
) -> Iterator[None]:
    """Put the global generators in a state that goes on from step to step of one run."""
    accelerators = [device for device in devices if device.type == "cuda"]
    every = [torch.device("cpu"), *accelerators]
    before = {device: _state(device) for device in every}
    for device in every:
        if device in states:
            _set_state(device, states[device])
        else:
            _default_generator(device).manual_seed(seed)
    try:
        yield
    finally:
        for device in every:
            states[device] = _state(device)
            _set_state(device, before[device])


def _default_generator(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index or 0]
    return torch.default_generator


def _state(device: torch.device) -> Tensor:
    return _default_generator(device).get_state()


def _set_state(device: torch.device, state: Tensor) -> None:
    _default_generator(device).set_state(state)
