"""`seeds=` has one meaning: how many samples, or the seed of each."""

from typing import Any

import numpy as np
import pytest
import torch

from diffusion_lens import HookedDiffusion, Run
from diffusion_lens.analyses.patching.pair import Pair
from diffusion_lens.errors import PatchingError, RunError
from diffusion_lens.long_runs.seeds import listed_seeds, refuse_one_seed
from diffusion_lens.metrics.intervals import bootstrap_interval


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (1, (0,)),
        (4, (0, 1, 2, 3)),
        (np.int64(2), (0, 1)),
        (torch.tensor(2), (0, 1)),
        ([4], (4,)),
        (range(3, 6), (3, 4, 5)),
        ((7, 0), (7, 0)),
        (torch.tensor([5, 6]), (5, 6)),
    ],
)
def test_a_number_is_how_many_and_others_are_the_seeds(given: Any, meant: tuple[int, ...]) -> None:
    assert listed_seeds(given, error=RunError) == meant


@pytest.mark.parametrize(
    "given", [0, -2, 10**12, [], [1, 1], [-1], 2.0, [0.5], True, "3", None, [None]]
)
def test_what_is_no_seed_is_refused(given: Any) -> None:
    with pytest.raises(RunError, match=r"the one seed 4 is seeds=\[4\]"):
        listed_seeds(given, error=RunError)


def test_seed_is_not_seeds() -> None:
    refuse_one_seed({"guidance_scale": 1.0}, error=RunError)
    with pytest.raises(RunError, match="seed=3: samples come from seeds="):
        refuse_one_seed({"seed": 3}, error=RunError)


@pytest.mark.parametrize(
    ("clean", "corrupted", "seeds", "meant"),
    [
        ("a", "b", None, tuple(range(8))),
        ("a", "b", 2, (0, 1)),
        (Run("a"), Run("b"), None, tuple(range(8))),
        (Run("a", seed=0), "b", None, (0,)),
        (Run("a", seed=0), Run("b", seed=0), None, (0,)),
        ("a", Run("b", seed=3), None, (3,)),
        (Run("a"), Run("b", seed=(3, 5)), None, (3, 5)),
        (Run("a"), Run("b"), [4], (4,)),
    ],
)
def test_the_samples_of_a_pair(
    clean: Any, corrupted: Any, seeds: Any, meant: tuple[int, ...]
) -> None:
    pair = Pair.of(clean, corrupted, direction="denoise", seeds=seeds, settings={})
    assert pair.seeds == meant


def test_a_seed_beside_seeds_is_refused() -> None:
    for seeds in (None, 3):
        with pytest.raises(PatchingError, match="seed=1: samples come from seeds="):
            Pair.of("a", "b", direction="denoise", seeds=seeds, settings={"seed": 1})
    with pytest.raises(PatchingError, match="seeds of their own"):
        Pair.of(Run("a", seed=0), "b", direction="denoise", seeds=3, settings={})


def test_one_sample_has_no_interval() -> None:
    samples = torch.tensor([[1.0], [torch.nan]])
    for end in bootstrap_interval(samples):
        assert end.isnan().all()
    several = torch.tensor([[1.0, torch.nan, torch.nan], [1.0, 1.0, torch.nan]])
    for end in bootstrap_interval(several):
        assert end.isnan().tolist() == [True, False]


def test_analyses_take_the_seed_of_a_run_and_refuse_another() -> None:
    from diffusion_lens import toys
    from diffusion_lens.analyses import attention_maps, concept_attention, head_patterns

    for name, analysis, more in (
        ("shapes-unet", attention_maps, {"words": "circle"}),
        ("shapes-unet", head_patterns, {}),
        ("shapes-mmdit", concept_attention, {"concepts": ["circle", "white"]}),
    ):
        model = HookedDiffusion.toy(name)
        settings = toys.call_defaults(model.pipe, steps=1)
        run = Run("a red circle", seed=3)
        analysis(model, run, **more, **settings)
        with pytest.raises(RunError, match=r"own seed \(3\), seed=0 was given"):
            analysis(model, run, seed=0, **more, **settings)
