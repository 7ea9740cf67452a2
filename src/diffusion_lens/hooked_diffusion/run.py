"""A run as a value: everything that an image depends on besides the model."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from diffusion_lens.border import PipelineSetting, public
from diffusion_lens.engine.run_state import images_per_prompt, prompts_in
from diffusion_lens.errors import RunError
from diffusion_lens.showing.one_line import counted


class _DefaultSeed(int):
    """The seed 0 that nobody gave: a `Run` keeps its own beside it."""

    def __reduce__(self) -> str:
        """Copies and unpickled ones are the very same, since it is told by its identity."""
        return "DEFAULT_SEED"


DEFAULT_SEED = _DefaultSeed(0)


@dataclass(frozen=True, init=False)
class Run:
    """A prompt, a seed and the pipeline's own arguments.

    Attributes:
        prompt: One prompt, several, or None where the settings hold embeddings.
        seed: One integer gives every prompt the same noise, so that prompts can be compared;
            several are paired with the prompts; None draws at random.
        settings: Arguments of the pipeline's call.

    Examples:
        >>> Run("a red circle", seed=3, num_inference_steps=20)
        Run('a red circle', seed=3, num_inference_steps=20)
    """

    prompt: str | tuple[str, ...] | None
    seed: int | tuple[int, ...] | None
    settings: Mapping[str, Any]

    @public(settings=PipelineSetting)
    def __init__(
        self,
        prompt: Any = None,
        *,
        seed: Any = DEFAULT_SEED,
        **settings: Any,
    ) -> None:
        """Make a run; nothing is checked against a model yet.

        Raises:
            RunError: If the prompts are no strings, or seeds and prompts do not pair.
        """
        if prompt is not None and not isinstance(prompt, str):
            prompt = tuple(prompt) if isinstance(prompt, Iterable) else (prompt,)
            if not prompt or not all(isinstance(one, str) for one in prompt):
                raise RunError(f"prompts are strings, got {prompt!r}")
        object.__setattr__(self, "prompt", prompt)
        object.__setattr__(self, "seed", _seed(seed))
        object.__setattr__(self, "settings", dict(settings))

    @classmethod
    def of(
        cls,
        given: Run | str | Sequence[str] | None,
        *,
        seed: int | Sequence[int] | None,
        settings: Mapping[str, Any],
    ) -> Run:
        """A run from a run (with some settings replaced) or from prompts."""
        if isinstance(given, Run):
            if seed is not DEFAULT_SEED and _seed(seed) != given.seed:
                raise RunError(
                    f"the run has its own seed ({given.seed!r}), seed={seed!r} was given beside "
                    "it; use `run.with_(seed=...)`"
                )
            return given.with_(**settings)
        return cls(given, seed=seed, **settings)

    @public(changes=PipelineSetting)
    def with_(self, **changes: Any) -> Run:
        """The same run with a prompt, seed or settings replaced."""
        prompt = changes.pop("prompt", self.prompt)
        seed = changes.pop("seed", self.seed)
        return Run(prompt, seed=seed, **{**self.settings, **changes})

    @property
    def prompts(self) -> list[str]:
        """The prompts as a list, empty where the run has embeddings."""
        if self.prompt is None:
            return []
        return [self.prompt] if isinstance(self.prompt, str) else list(self.prompt)

    @property
    def samples(self) -> int:
        """How many images the run makes."""
        asked = {**self.settings, "prompt": self.prompts}
        return max(prompts_in(asked) or 0, 1) * self.images_per_prompt

    @property
    def images_per_prompt(self) -> int:
        """How many images it makes of each prompt."""
        return images_per_prompt(self.settings)

    @property
    def text_length(self) -> int | None:
        """The `max_sequence_length` that it asks for, which may cut words away."""
        return self.settings.get("max_sequence_length")

    def seeds(self) -> list[int]:
        """The seed of each sample.

        Images of one prompt count up from the prompt's seed.

        Raises:
            RunError: If there are neither as many seeds as prompts nor as samples.
        """
        prompts = self.samples // self.images_per_prompt
        if self.seed is None:
            drawn = int(torch.randint(2**31, ()).item())
            return [drawn + offset for offset in range(self.samples)]
        if isinstance(self.seed, int):
            each = [self.seed] * prompts
        elif len(self.seed) == self.samples:
            return list(self.seed)
        elif len(self.seed) == prompts:
            each = list(self.seed)
        else:
            raise RunError(
                f"{counted(len(self.seed), 'seed')} for {counted(prompts, 'prompt')}; give one "
                "seed for all prompts, one for each prompt, or one for each image"
            )
        return [seed + offset for seed in each for offset in range(self.images_per_prompt)]

    def __hash__(self) -> int:
        """By the call that makes it; tensors count with their shape alone."""
        return hash(repr(self))

    def __repr__(self) -> str:
        """The call that makes it; tensors are shown by their shape."""
        shown = ", ".join(f"{name}={_short(value)}" for name, value in self.settings.items())
        return f"Run({self.prompt!r}, seed={self.seed!r}{', ' + shown if shown else ''})"


def _seed(seed: Any) -> int | tuple[int, ...] | None:
    """A seed, or one for each prompt; whole numbers of numpy and torch are fine."""
    if seed is None or seed is DEFAULT_SEED:
        return seed
    try:
        several = hasattr(seed, "__iter__") and getattr(seed, "ndim", 1)
        return tuple(map(operator.index, seed)) if several else operator.index(seed)
    except TypeError:
        raise RunError(
            f"a seed is a whole number, several of them, or None for random noise; got {seed!r}"
        ) from None


def _short(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"<tensor {tuple(value.shape)}>"
    text = repr(value)
    return text if len(text) <= 80 else f"<{type(value).__name__}>"


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """A CPU generator for each sample, so that no sample depends on the others of its batch."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


ONE_GENERATOR = ("WanVACEPipeline",)
"""Pipelines that take a generator, and no list with one for each sample."""


def as_taken(pipe: Any, several: list[torch.Generator]) -> list[torch.Generator] | torch.Generator:
    """Generators in the form that a pipeline takes them."""
    return several[0] if type(pipe).__name__ in ONE_GENERATOR and len(several) == 1 else several
