"""What a run gives back, with all that made it."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from torch import Tensor

from diffusion_lens.engine.guiders import guiders_of
from diffusion_lens.engine.registration import Registration
from diffusion_lens.hooked_diffusion.report import Report
from diffusion_lens.hooked_diffusion.run import Run
from diffusion_lens.showing.gallery import gallery
from diffusion_lens.showing.one_line import counted, one_line, short

PACKAGES = ("diffusion_lens", "torch", "diffusers", "transformers")


@dataclass(frozen=True)
class Provenance:
    """What made a result; enough to make it again.

    Attributes:
        run: The run.
        seeds: The seed of each sample.
        pipeline: Class of the pipeline.
        model: Name of the hooked model.
        scheduler: Class of the scheduler.
        scheduler_config: Its configuration.
        steps: How many times the scheduler stepped.
        dtype: Precision of the denoiser.
        hooks: The hooks, as text.
        versions: Versions of the packages that matter.
        guiders: The configuration of each guider, by its number and class.
    """

    run: Run
    seeds: tuple[int, ...]
    pipeline: str
    model: str
    scheduler: str
    scheduler_config: Mapping[str, Any]
    steps: int
    dtype: str
    hooks: tuple[str, ...]
    versions: Mapping[str, str]
    guiders: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For json; tensors and images become their descriptions."""
        return {
            "run": repr(self.run),
            "seeds": list(self.seeds),
            "pipeline": self.pipeline,
            "model": self.model,
            "scheduler": self.scheduler,
            "scheduler_config": {key: str(value) for key, value in self.scheduler_config.items()},
            "steps": self.steps,
            "dtype": self.dtype,
            "hooks": list(self.hooks),
            "versions": dict(self.versions),
        } | ({"guiders": _as_text(self.guiders)} if self.guiders else {})


@dataclass(frozen=True)
class Output:
    """The result of a run.

    Attributes:
        images: What the pipeline made, as its `output_type` says; None for `"latent"`.
        latents: The latents behind it, as the pipeline holds them.
        report: How often each hook fired and how much it changed.
        made_by: Everything that the result depended on.
        frames: The videos of a video pipeline, in place of `images`.
        audio: The sound of these videos, with axes batch, channel, time, where a pipeline makes
            some; for `output_type="latent"` its latents.
    """

    images: Any
    latents: Tensor | None
    report: Report
    made_by: Provenance
    frames: Any = field(default=None)
    audio: Tensor | None = None

    @property
    def image(self) -> Any:
        """The first image."""
        return None if self.images is None else self.images[0]

    def __repr__(self) -> str:
        """What was drawn and its sizes, in one line."""
        run, latents = self.made_by.run, self.latents
        made = counted(0 if self.images is None else len(self.images), "image")
        if self.frames is not None:
            made = (
                f"{counted(len(self.frames), 'video')} of {counted(len(self.frames[0]), 'frame')}"
            )
        return one_line(
            self,
            short(run.prompts),
            made,
            f"latents {None if latents is None else tuple(latents.shape)}",
            f"seed={run.seed!r}",
            counted(len(self.report), "report row"),
            made_by={"model": self.made_by.model},
            look=(".image" if self.frames is None else ".frames", ".report", ".made_by"),
        )

    def _repr_html_(self) -> str | None:
        """The images; of a video its first, middle and last frame."""
        made = self.made_by
        prompts = [one for one in made.run.prompts for _ in range(made.run.images_per_prompt)]
        seeds = [f"seed {seed}" for seed in made.seeds]
        captions = [", ".join(both) for both in zip_longest(prompts, seeds, fillvalue="")]
        given = self.images if self.frames is None else self.frames
        return gallery(given, captions=captions, line=repr(self))


def provenance(
    pipe: Any,
    run: Run,
    *,
    model: str,
    seeds: Sequence[int],
    steps: int,
    dtype: object,
    registrations: Sequence[Registration],
) -> Provenance:
    """Put together what made a result."""
    return Provenance(
        run=run,
        seeds=tuple(seeds),
        pipeline=type(pipe).__name__,
        model=model,
        scheduler=type(pipe.scheduler).__name__,
        scheduler_config=dict(pipe.scheduler.config),
        steps=steps,
        dtype=str(dtype),
        hooks=tuple(map(repr, registrations)),
        versions=versions(),
        guiders={
            f"{number} {type(one).__name__}": dict(one.config)
            for number, one in enumerate(guiders_of(pipe))
        },
    )


def _as_text(guiders: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    return {
        name: {key: str(value) for key, value in config.items()} for name, config in guiders.items()
    }


@functools.cache
def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed as a package"


def versions() -> dict[str, str]:
    """Installed versions of the packages that results depend on."""
    return {package: _version(package) for package in PACKAGES}
