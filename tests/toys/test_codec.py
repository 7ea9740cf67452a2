from typing import Any

import numpy as np
import pytest
import torch

from diffusion_lens.toys.codec import LATENT_MEAN, LATENT_SPREAD, half_codec, pixel_codec


@pytest.fixture
def pixels():
    return torch.rand(2, 3, 32, 32) * 2 - 1


def test_the_half_codec_takes_mean_opponent_colours_of_blocks(pixels):
    codec: Any = half_codec()
    latents = codec.encode(pixels).latents.detach()
    red, green, blue = pixels.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2)).unbind(1)
    by_hand = [(red + green + blue) / 3, (red - green) / 3, (red + green - 2 * blue) / 6]
    for channel, value in enumerate(by_hand):
        expected = (value - LATENT_MEAN[channel]) / LATENT_SPREAD[channel]
        torch.testing.assert_close(latents[:, channel], expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_pixel_codec_is_exact_to_eight_bits(pixels):
    codec: Any = pixel_codec()
    latents = codec.encode(pixels).latents
    assert latents.shape == pixels.shape
    error = (codec.decode(latents).sample - pixels).abs().max() * 127.5
    assert error < 0.1
    spread = float((latents * codec.config.scaling_factor).std())
    assert spread == pytest.approx(np.sqrt(1 / 3) / 0.65, rel=0.1)
