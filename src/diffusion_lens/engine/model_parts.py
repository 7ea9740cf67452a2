"""The parts of a model that the engine looks up: denoiser, description, hook points."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from diffusion_lens.architectures.catalogue import find_absent, find_points, native_points
from diffusion_lens.architectures.registry import architecture_of, architectures
from diffusion_lens.architectures.relatives import closest_relative
from diffusion_lens.architectures.spec import DenoiserSpec
from diffusion_lens.architectures.undescribed import UNDESCRIBED
from diffusion_lens.engine.companion import Companion
from diffusion_lens.engine.denoisers import DENOISERS, by_prefix, denoiser_of, denoisers_of
from diffusion_lens.engine.guiders import guiders_of
from diffusion_lens.engine.modular import encoders_of, refuse_unready
from diffusion_lens.errors import UnsupportedModelError, listing
from diffusion_lens.hook_points.names import NamePattern, match_names, which_denoiser
from diffusion_lens.hook_points.point import Absent, HookPoint


class ModelParts:
    """A pipeline (or a bare denoiser) and its description.

    Attributes:
        pipe: The pipeline, None for a bare denoiser.
        spec: The denoiser's description.
        companion: What runs beside the main pass.
    """

    def __init__(
        self, pipe: Any, which: str | None = None, spec: DenoiserSpec | None = None
    ) -> None:
        """Look up the denoiser.

        Args:
            pipe: A diffusers pipeline, or a denoiser that is called by hand.
            which: The pipeline's attribute that holds it; None for the first that there is.
            spec: Its description; None for the one that is registered for its class.

        Raises:
            UnsupportedModelError: If there is no denoiser of a known architecture, or a modular
                pipeline has not loaded what its steps need.
        """
        self.pipe = None if isinstance(pipe, nn.Module) else pipe
        self.which = which
        self._bare = pipe if isinstance(pipe, nn.Module) else None
        refuse_unready(self.pipe)
        self.spec = spec or _registered(self.denoiser)
        self.companion: Companion | None = None
        self._points: tuple[object, dict[str, HookPoint]] | None = None
        self.points  # noqa: B018 (an unknown kind of block is an error now, not in the first run)

    @property
    def denoiser(self) -> Any:
        """The module that is hooked, looked up anew each time.

        Raises:
            UnsupportedModelError: If the pipeline has none.
        """
        found: Any = self._bare
        if self.pipe is not None:
            found = denoiser_of(self.pipe, self.which)
        if found is None and self.which is not None:
            there = listing(list(denoisers_of(self.pipe))) or "none"
            raise UnsupportedModelError(
                f"{type(self.pipe or self._bare).__name__} has no denoiser {self.which!r}; it has "
                f"{there}"
            )
        if found is None:
            raise UnsupportedModelError(
                f"{type(self.pipe).__name__} has no denoiser under any of {DENOISERS}; wrap a "
                "ready text-to-image pipeline, or the denoiser itself"
            )
        return getattr(found, "_orig_mod", found)  # what `torch.compile` wraps has the hooks

    @property
    def denoisers(self) -> dict[str, Any]:
        """The denoisers that can be hooked, by what their names begin with.

        It is one alone where the model was told which.
        """
        first = self.denoiser
        return {"": first} if self.pipe is None or self.which else by_prefix(self.pipe, first)

    @property
    def called(self) -> str:
        """What messages call the model."""
        return type(self.denoiser).__name__

    @property
    def device(self) -> torch.device:
        """Where the denoiser computes."""
        # Offloaded weights lie elsewhere between calls.
        return getattr(self.pipe, "_execution_device", None) or self.denoiser.device

    @property
    def points(self) -> dict[str, HookPoint]:
        """Every hook point by name."""
        denoiser = self.denoiser
        state = (denoiser, self._processors())
        if self._points is None or self._points[0] != state:
            found = find_points(denoiser, self.spec)
            if self.pipe is None:
                found = {
                    name: point for name, point in found.items() if point.module != "scheduler"
                }
            self._points = (state, found)
        main = self._points[1]
        return main if self.companion is None else self.companion.points(denoiser, main)

    def _processors(self) -> tuple[type, ...]:
        return tuple(map(type, getattr(self.denoiser, "attn_processors", {}).values()))

    def attached_to(self) -> list[object]:
        """What hooks are attached to: LoRA, for one, puts other modules in place."""
        scheduler = getattr(self.pipe, "scheduler", None)
        modules = [part for one in self.denoisers.values() for part in one.modules()]
        further = () if self.pipe is None else by_prefix(self.pipe, self.denoiser).values()
        told_by = (*guiders_of(self.pipe), *encoders_of(self.pipe))
        return [scheduler, *told_by, *self._processors(), *modules, *further]

    def asked_for(self, pattern: Any) -> dict[str, HookPoint]:
        """Hook points that a pattern has to ask for.

        They are those of the second denoiser, and modules by their path in diffusers.
        """
        of = which_denoiser(pattern) if isinstance(pattern, str) else ""
        if of and of in self.denoisers:
            return find_points(self.denoisers[of], self.spec, of)
        return native_points(self.denoiser, pattern)

    def absent(self, pattern: NamePattern) -> tuple[Absent, ...]:
        """Names that some block lacks, of the denoiser that a pattern asks for."""
        of = which_denoiser(pattern) if isinstance(pattern, str) else ""
        denoiser = self.denoisers.get(of)
        return () if denoiser is None else find_absent(denoiser, self.spec, of)

    def find(self, pattern: NamePattern) -> dict[str, HookPoint]:
        """The hook points that a pattern selects, by name.

        Raises:
            UnknownHookPointError: If there is none.
        """
        known = self.asked_for(pattern) or self.points
        return {name: known[name] for name in match_names(pattern, list(known), model=self.called)}

    @property
    def n_blocks(self) -> int:
        """Number of transformer blocks."""
        return 1 + max(point.block for point in self.points.values() if point.block is not None)


def _registered(denoiser: nn.Module) -> DenoiserSpec:
    """The description of a denoiser's class.

    Raises:
        UnsupportedModelError: If there is none; the message names the family that it is built like.
    """
    try:
        return architecture_of(type(denoiser).__name__)
    except UnsupportedModelError as error:
        relative = closest_relative(denoiser, architectures().values())
        reason = UNDESCRIBED.get(type(denoiser).__name__)
        known = "" if reason is None else f" Of it is known: {reason}."
        built = "" if relative is None else f" It is built most like {relative}."
        raise UnsupportedModelError(
            f"{error}{known}{built} `HookedDiffusion(..., describe=True)` describes it on the "
            "spot, `diffusion-lens describe` writes a description to review."
        ) from None
