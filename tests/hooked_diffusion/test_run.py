"""Runs as values: copies, seeds and how many images they make."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

from diffusion_lens import HookedDiffusion, Run
from diffusion_lens.engine.run_state import RunState
from diffusion_lens.errors import RunError
from diffusion_lens.hooked_diffusion.run import DEFAULT_SEED
from tests.pipelines import shared_pipe, short

COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "old pickle": lambda value: pickle.loads(pickle.dumps(value, protocol=0)),
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copied_run_takes_a_generator_in_place_of_a_seed_that_nobody_gave(
    copied: Callable[[Any], Any],
) -> None:
    run = Run("a cat", num_inference_steps=1)
    again = copied(run)
    assert again == run and again.seed is DEFAULT_SEED
    settings = {**short("sd", steps=1), "generator": torch.Generator().manual_seed(3)}
    del settings["latents"], settings["prompt"]
    assert HookedDiffusion(shared_pipe("sd"))(again.with_(**settings)).latents is not None
    with pytest.raises(RunError, match="both seed=0 and generator= were given"):
        HookedDiffusion(shared_pipe("sd"))(copied(Run("a cat", seed=0, **settings)))


@pytest.mark.parametrize("again", [[1, 2], (1, 2), range(1, 3), DEFAULT_SEED])
def test_the_runs_own_seeds_may_be_given_again_in_any_form(again: Any) -> None:
    run = Run(["a cat", "a dog"], seed=[1, 2])
    assert Run.of(run, seed=again, settings={}) == run


def test_other_seeds_beside_the_runs_own_are_refused() -> None:
    for given in ([2, 1], 1, None):
        with pytest.raises(RunError, match=r"the run has its own seed \(\(1, 2\)\)"):
            Run.of(Run(["a cat", "a dog"], seed=[1, 2]), seed=given, settings={})


@pytest.mark.parametrize(
    ("prompt", "settings", "count"),
    [
        ("a cat", {}, 1),
        (["a cat", "a dog"], {"num_images_per_prompt": 3}, 6),
        (None, {"prompt_embeds": torch.zeros(2, 4, 8), "num_videos_per_prompt": 2}, 4),
        ("a cat", {"prompt_embeds": torch.zeros(2, 4, 8)}, 2),
        ("a cat", {"prompt_embeds": None, "num_images_per_prompt": None}, 1),
    ],
)
def test_a_run_and_the_engine_count_the_same_images(
    prompt: Any, settings: dict[str, Any], count: int
) -> None:
    run = Run(prompt, **settings)
    assert run.samples == count
    assert RunState(asked={"prompt": run.prompt, **settings}).samples == count
