"""The two runs of a sweep: the base, which is patched, and the source of what is put into it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffusion_lens import HookedDiffusion, Run
from diffusion_lens.analyses.patching.corruption import WordNoise
from diffusion_lens.authoring import DEFAULT_SEED, call_settings
from diffusion_lens.errors import PatchingError, refuse_unknown
from diffusion_lens.long_runs.seeds import listed_seeds, refuse_one_seed
from diffusion_lens.long_runs.telling import told

DIRECTIONS = ("denoise", "noise")
SAMPLES = 8
SAID = ("negative_prompt", "prompt_2", "prompt_3", "negative_prompt_2", "negative_prompt_3")
REPEATS = ("num_images_per_prompt", "num_videos_per_prompt")
"""What pipelines call the number of samples of one prompt."""


@dataclass(frozen=True)
class Side:
    """One of the two runs.

    Attributes:
        run: Its prompt or embeddings and the settings; the seeds and the number of samples of each
            batch are put in later.
        noise: Noise on the embeddings of some words, while it is encoded.
    """

    run: Run
    noise: WordNoise | None = None

    @property
    def prompt(self) -> str | None:
        """Its prompt, None where embeddings were given."""
        return self.run.prompts[0] if self.run.prompts else None

    def encoding(self, model: HookedDiffusion) -> AbstractContextManager[object]:
        """What must be open while its prompt is encoded."""
        if self.noise is None:
            return contextlib.nullcontext()
        assert self.prompt is not None
        return self.noise.applied(model, self.prompt)


@dataclass(frozen=True)
class Pair:
    """Base and source, and the noise that both start from.

    Attributes:
        clean: The run whose trajectory teacher-forced steps are taken from.
        corrupted: The other.
        direction: `"denoise"`: clean values go into the corrupted run; `"noise"`: the reverse.
        seeds: Seed of each sample, or its number where latents were given.
        latents: The latents that were given, or None.
        repeats: The pipeline's argument for several samples of one prompt; None where the prompt is
            said as often as there are samples.
    """

    clean: Side
    corrupted: Side
    direction: str
    seeds: tuple[int, ...]
    latents: Tensor | None = field(default=None, repr=False)
    repeats: str | None = REPEATS[0]

    @classmethod
    def of(
        cls,
        clean: Any,
        corrupted: Any,
        *,
        direction: str,
        seeds: int | Sequence[int] | None,
        settings: Mapping[str, Any],
        repeats: str | None = REPEATS[0],
    ) -> Pair:
        """Check two runs and bring them into one form.

        Raises:
            PatchingError: If they do not make a pair.
        """
        refuse_unknown("direction", direction, DIRECTIONS, error=PatchingError)
        refuse_one_seed(settings, error=PatchingError)
        noise = corrupted if isinstance(corrupted, WordNoise) else None
        other: Any = corrupted if noise is None else clean
        given = (Run.of(one, seed=DEFAULT_SEED, settings=settings) for one in (clean, other))
        runs = [_one_prompt(one) for one in given]
        if noise and not runs[0].prompts:
            raise PatchingError("noise on words needs a prompt, not embeddings")
        latents = [one for run in runs if (one := run.settings.get("latents")) is not None]
        if not all(torch.equal(latents[0], one) for one in latents):
            raise PatchingError(
                "clean and corrupted were given different latents: differences between the runs "
                "would be due to noise. Give both the same, or only one of them"
            )
        start = latents[0] if latents else None
        chosen = _seeds(runs, seeds, start)
        sides = Side(_bare(runs[0])), Side(_bare(runs[1]), noise)
        return cls(*sides, direction, chosen, start, repeats)

    @property
    def source(self) -> Side:
        """Where the patched values come from."""
        return self.clean if self.direction == "denoise" else self.corrupted

    @property
    def base(self) -> Side:
        """What is patched."""
        return self.corrupted if self.direction == "denoise" else self.clean

    def batch(self, side: Side, samples: Sequence[int]) -> Run:
        """The run of some samples (a sample may come several times)."""
        more: dict[str, Any] = {}
        if self.repeats is not None:
            more[self.repeats] = len(samples)
        elif side.prompt is None:
            if len(samples) > 1:
                raise PatchingError(
                    "the pipeline makes one sample of given embeddings; give the prompt as words, "
                    "or seeds=1 and batch_size=1"
                )
        elif len(samples) > 1:  # else as it is: Wan VACE takes no list
            more = said_for_each(side.run.settings, len(samples))
            more["prompt"] = [side.prompt] * len(samples)
        if self.latents is not None:
            more["latents"] = self.latents[list(samples)]
        seeds = tuple(self.seeds[sample] for sample in samples)
        return side.run.with_(seed=seeds, **more)

    def about(self) -> dict[str, Any]:
        """Both runs as a saved result says it; tensors by their digest."""
        return {
            name: {
                "prompt": side.prompt,
                "noise": repr(side.noise) if side.noise else None,
                **{key: told(value) for key, value in side.run.settings.items()},
            }
            for name, side in (("clean", self.clean), ("corrupted", self.corrupted))
        } | {"direction": self.direction, "seeds": self.seeds, "latents": told(self.latents)}


def repeats_of(model: HookedDiffusion) -> str | None:
    """The pipeline's argument for several samples of one prompt.

    None where it has none, and for videos: several of those pipelines have the argument and set it
    to 1 (CogVideoX, Allegro), or fail at it (Wan from images), but take a list of prompts.
    """
    return REPEATS[0] if REPEATS[0] in call_settings(model.pipe) else None


def said_for_each(settings: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Further prompts of a run as lists, which some pipelines want beside a list of prompts."""
    return {
        name: [value] * count
        for name, value in settings.items()
        if isinstance(value, str) and name in SAID
    }


def _one_prompt(run: Run) -> Run:
    embeddings = run.settings.get("prompt_embeds")
    count = len(run.prompts) if embeddings is None else int(embeddings.shape[0])
    if count != 1 or run.images_per_prompt != 1:
        raise PatchingError(
            f"a sweep takes a single prompt for each run, got {run!r}; samples come from seeds=, "
            "and several prompts from a loop over sweeps"
        )
    return run


def _seeds(runs: Sequence[Run], seeds: Any, latents: Tensor | None) -> tuple[int, ...]:
    """The seed of each sample, or its number where latents were given.

    Args:
        runs: The two sides.
        seeds: As the caller gave them.
        latents: The latents that were given, or None.
    """
    chosen = None if seeds is None else listed_seeds(seeds, error=PatchingError)
    if latents is not None:
        if chosen is not None and len(chosen) != len(latents):
            raise PatchingError(f"{len(chosen)} seeds for {len(latents)} given latents")
        return chosen or tuple(range(len(latents)))
    own = {run.seed for run in runs if run.seed is not DEFAULT_SEED}
    if chosen is not None:
        if own:
            raise PatchingError(f"the runs have seeds of their own ({own}), beside seeds={seeds!r}")
        return chosen
    if len(own) > 1:
        raise PatchingError(
            f"clean and corrupted start from different noise (seeds {own}); give both Runs one "
            "seed, or give seeds="
        )
    if None in own:
        raise PatchingError(
            "the runs have seed=None, random noise, which the two cannot share; give seeds="
        )
    seed = own.pop() if own else range(SAMPLES)
    return listed_seeds([seed] if isinstance(seed, int) else seed, error=PatchingError)


def _bare(run: Run) -> Run:
    settings = {key: value for key, value in run.settings.items() if key != "latents"}
    for name in REPEATS:
        settings.pop(name, None)
    return Run(run.prompts[0] if run.prompts else None, **settings)
