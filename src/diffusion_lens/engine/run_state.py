"""What is known of one run: replaced when the next one begins, so that nothing of it is left."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from diffusion_lens.engine.guiders import Prepared
from diffusion_lens.engine.noise import Schedule
from diffusion_lens.engine.words import PromptTokens
from diffusion_lens.errors import WordError

PartPrompts = tuple[str, ...]
"""The prompt of each part of the text stream; mostly the same one."""

Prompts = tuple[PartPrompts, ...]
"""The different prompts of a batch."""

SAME_PROMPT = {"perturbed": "cond", "skip": "cond", "isolated": "cond", "image": "uncond"}
"""Branches of a guidance of their own that read the prompt of another one."""


@dataclass(eq=False)
class Seen:
    """Which steps and branches ran while somebody noted them.

    Attributes:
        branches: The branches.
        steps: The steps.
        taken: The steps of each denoiser, by what its names begin with.
        planned: How many steps a run that was interrupted would have had.
    """

    branches: set[str] = field(default_factory=set)
    steps: set[int] = field(default_factory=set)
    taken: dict[str, set[int]] = field(default_factory=dict)
    planned: int = 0


@dataclass(eq=False)
class RunState:
    """One call of the pipeline, or the evaluations by hand between two of them.

    Attributes:
        asked: Arguments of the pipeline's call; None where the denoiser is called by hand.
        step: How many times the scheduler has stepped.
        first_step: The step that the run began with.
        call: Evaluations since the scheduler stepped.
        evaluations: Evaluations since the run began.
        passes: How often the scheduler began anew after some.
        reached: Where on its schedule the scheduler stood after its last step, if it tells.
        length: How many timesteps the scheduler has; None before it is told.
        schedule: The scheduler's timesteps as numbers.
        prompts: The prompts of each branch, for every sample.
        untold: Why words of the prompts cannot be told; empty where they can.
        encodings: How many times the pipeline encoded prompts.
        max_length: The length to which it was told to cut and pad the text, where it was.
        guided: Whether it was told to encode for guidance; None where it did not say.
        named_branch: The name that the pipeline gives to the evaluation that comes.
        prepared: What a guider prepared for this step; None where there is none.
        unchanged_told: Whether it was said that a guider changes nothing.
        thread: The thread that it runs on.
        grid_of: The ids that say the grid, their version, and the grid of each level.
        tokens: The tokens of each prompt, by prompt, `max_length` and whether it is negative.
        words: Where every word lies, by prompts, `max_length` and branch.
        places: Where a word or phrase lies that was looked up, by these and itself.
    """

    asked: Mapping[str, Any] | None = None
    step: int = 0
    first_step: int = 0
    call: int = 0
    evaluations: int = 0
    passes: int = 0
    reached: int | None = None
    length: int | None = None
    schedule: Schedule | None = None
    prompts: dict[str, list[PartPrompts]] = field(default_factory=dict)
    untold: str = ""
    encodings: int = 0
    max_length: int | None = None
    guided: bool | None = None
    named_branch: str | None = None
    prepared: Prepared | None = None
    unchanged_told: bool = False
    thread: int = field(default_factory=threading.get_ident)
    grid_of: tuple[Tensor, int, dict[int, tuple[int, ...]]] | None = None
    tokens: dict[tuple[PartPrompts, int | None, bool], PromptTokens] = field(default_factory=dict)
    words: dict[tuple[Prompts, int | None, str], dict[str, tuple[int, ...]]] = field(
        default_factory=dict
    )
    places: dict[tuple[Prompts, int | None, str, str], tuple[int, ...]] = field(
        default_factory=dict
    )

    @property
    def in_pipeline(self) -> bool:
        """Whether the pipeline's own call is running."""
        return self.asked is not None

    @property
    def samples(self) -> int | None:
        """How many images one branch makes, where the call tells."""
        known = self.prompts.get("cond")
        if known:
            return len(known)
        asked = self.asked or {}
        count = prompts_in(asked)
        return None if count is None else count * images_per_prompt(asked)

    def begin(self, length: int | None) -> None:
        """Count steps from 0 again."""
        self.passes += bool(self.evaluations)
        self.reached = None
        self.step = self.first_step = self.call = self.evaluations = 0
        self.length = length

    def prompts_of(self, branch: str) -> list[PartPrompts]:
        """The prompts of a branch, one for each part of the text stream.

        Raises:
            WordError: If none are known, as when the run was given embeddings, or their words
                cannot be told.
        """
        if self.untold:
            raise WordError(f"{self.untold}; use token indices instead of words")
        found = self.prompts.get(branch) or self.prompts.get(SAME_PROMPT.get(branch, ""))
        if not found:
            raise WordError(
                f"the prompts of branch {branch!r} are not known (the run was given embeddings, or "
                "the denoiser was called by hand); use token indices instead of words"
            )
        return found


def prompts_in(arguments: Mapping[str, Any]) -> int | None:
    """How many prompts a call has, None where it does not tell; embeddings come first."""
    for name in ("prompt_embeds", "prompt"):
        given = arguments.get(name)
        if isinstance(given, str):
            return 1
        if isinstance(given, Tensor | Sequence):
            return len(given)
    return None


def images_per_prompt(arguments: Mapping[str, Any]) -> int:
    """How many images a call makes of each prompt."""
    for name in ("num_images_per_prompt", "num_videos_per_prompt"):
        if arguments.get(name) is not None:
            return int(arguments[name])
    return 1
