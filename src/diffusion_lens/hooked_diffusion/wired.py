"""A wrapped model's parts by their names."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from diffusion_lens.architectures.spec import DenoiserSpec
from diffusion_lens.border import public
from diffusion_lens.engine.wiring import Wiring
from diffusion_lens.hook_points.point import HookPoint


class Wired:
    """What every part of `HookedDiffusion` looks up in its wiring.

    Attributes:
        wiring: What the model is to the engine.
    """

    wiring: Wiring

    @property
    def pipe(self) -> Any:
        """The pipeline, None for a bare denoiser."""
        return self.wiring.pipe

    @property
    def spec(self) -> DenoiserSpec:
        """The description of the denoiser."""
        return self.wiring.spec

    @property
    def denoiser(self) -> Any:
        """The module that is hooked, looked up anew each time."""
        return self.wiring.denoiser

    @property
    def points(self) -> dict[str, HookPoint]:
        """Every hook point by name."""
        return self.wiring.points

    @property
    def device(self) -> torch.device:
        """Where the denoiser computes."""
        return self.wiring.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the denoiser."""
        return self.denoiser.dtype

    @property
    def n_blocks(self) -> int:
        """Number of transformer blocks."""
        return self.wiring.n_blocks

    @property
    def branches(self) -> tuple[str, ...]:
        """Every guidance branch that an evaluation of this model can have."""
        return self.wiring.tracker.known_branches()

    @public
    @contextlib.contextmanager
    def following(self) -> Iterator[Callable[[], int]]:
        """Follow the pipeline's runs while the context is open, with hooks or without.

        Yields:
            A function that says how many times the scheduler has stepped.
        """
        with self.wiring.following() as tracker:
            yield lambda: tracker.step
