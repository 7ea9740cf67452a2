"""The tiny denoisers are small, and random enough to tell heads, streams and gates apart."""

import pytest
import torch

from diffusion_lens import HookedDiffusion
from diffusion_lens.testing import TINY_FAMILIES, tiny_denoiser

OF_A_FIXED_WIDTH = ("hunyuan_video_15",)
"""Families with a text projection of 2048 features whatever their configuration says."""


@pytest.mark.slow
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_tiny_denoisers_are_small_and_sharp(family: str) -> None:
    denoiser, inputs = tiny_denoiser(family)
    most = 5_000_000 if family in OF_A_FIXED_WIDTH else 500_000
    assert 30_000 <= sum(weight.numel() for weight in denoiser.parameters()) <= most
    model = HookedDiffusion(denoiser)
    with torch.no_grad(), model.caching(["**.hook_pattern", "**.hook_*_update"]) as cache:
        denoiser(**inputs)
    for name in model.hook_names("**.hook_pattern"):
        pattern = cache[name][0]
        assert pattern.amax(-1).mean() > min(0.5, 3 / pattern.shape[-1])
    for name in model.hook_names("**.hook_*_update"):
        assert cache[name].std() > 0.05


def test_the_same_seed_gives_the_same_denoiser() -> None:
    first, inputs = tiny_denoiser("flux", seed=3)
    second, again = tiny_denoiser("flux", seed=3)
    other, _ = tiny_denoiser("flux", seed=4)
    weights = [torch.cat([w.flatten() for w in m.parameters()]) for m in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(inputs["hidden_states"], again["hidden_states"])


def test_an_unknown_family_lists_the_known_ones() -> None:
    with pytest.raises(LookupError, match="no tiny model of 'sd9'; there are sd1, sd2, sdxl"):
        tiny_denoiser("sd9")
