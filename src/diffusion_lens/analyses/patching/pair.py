"""The two runs of a sweep: the base, which is patched, and the source of what is put into it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffusion_lens import HookedDiffusion, Run
from diffusion_lens.analyses.patching.corruption import WordNoise
from diffusion_lens.errors import PatchingError, refuse_unknown

DIRECTIONS = ("denoise", "noise")
SAMPLES = 8


@dataclass(frozen=True)
class Side:
    """One of the two runs.

    Attributes:
        run: Its prompt or embeddings and the settings; the seed and `num_images_per_prompt` of
            each batch are put in later.
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
    """

    clean: Side
    corrupted: Side
    direction: str
    seeds: tuple[int, ...]
    latents: Tensor | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        clean: Any,
        corrupted: Any,
        *,
        direction: str,
        seeds: int | Sequence[int] | None,
        settings: Mapping[str, Any],
    ) -> Pair:
        """Check two runs and bring them into one form.

        Raises:
            PatchingError: If they do not make a pair.
        """
        refuse_unknown("direction", direction, DIRECTIONS, error=PatchingError)
        noise = corrupted if isinstance(corrupted, WordNoise) else None
        other: Any = corrupted if noise is None else clean
        runs = [_one_prompt(Run.of(one, seed=0, settings=settings)) for one in (clean, other)]
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
        return cls(*sides, direction, chosen, start)

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
        more: dict[str, Any] = {"num_images_per_prompt": len(samples)}
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


def _one_prompt(run: Run) -> Run:
    embeddings = run.settings.get("prompt_embeds")
    count = len(run.prompts) if embeddings is None else int(embeddings.shape[0])
    if count != 1 or run.images_per_prompt != 1:
        raise PatchingError(
            f"a pair has one clean and one corrupted prompt, got {run!r}; samples come from "
            "seeds=, and several pairs from a loop over activation_patching"
        )
    return run


def _seeds(runs: Sequence[Run], seeds: Any, latents: Tensor | None) -> tuple[int, ...]:
    own = {run.seed for run in runs if run.seed != 0}
    if latents is not None:
        if seeds is not None and len(_listed(seeds)) != len(latents):
            raise PatchingError(f"{len(_listed(seeds))} seeds for {len(latents)} given latents")
        return tuple(range(len(latents))) if seeds is None else _listed(seeds)
    if seeds is not None and own:
        raise PatchingError(f"the runs have seeds of their own ({own}), beside seeds={seeds!r}")
    if len(own) > 1:
        raise PatchingError(
            f"clean and corrupted start from different noise (seeds {own}); give seeds= once, for "
            "both"
        )
    chosen = _listed(seeds if seeds is not None else own.pop() if own else range(SAMPLES))
    if not chosen or len(set(chosen)) != len(chosen):
        raise PatchingError(f"seeds={seeds!r}: one or more different whole numbers are needed")
    return chosen


def _listed(seeds: Any) -> tuple[int, ...]:
    """Seeds as a tuple; one whole number is one seed."""
    seed = Run(seed=seeds).seed
    return (seed,) if isinstance(seed, int) else tuple(seed or ())


def _bare(run: Run) -> Run:
    settings = {key: value for key, value in run.settings.items() if key != "latents"}
    settings.pop("num_images_per_prompt", None)
    return Run(run.prompts[0] if run.prompts else None, **settings)


def told(value: Any) -> Any:
    """A value as json has it, the same in every process; tensors by their digest."""
    if isinstance(value, Tensor):
        raw = value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
        return f"tensor {tuple(value.shape)} sha256 {hashlib.sha256(raw).hexdigest()[:16]}"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return repr(value)
