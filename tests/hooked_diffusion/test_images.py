"""Images in and out of latents as each pipeline itself does it."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lens import HookedDiffusion
from tests.pipelines import FAMILIES, fresh_pipe, latents_of, short


def with_mean(family: str) -> Any:
    """A pipeline whose VAE has a mean and spread for each channel, as Playground v2.5's has."""
    pipe = fresh_pipe(family)
    count = pipe.vae.config.latent_channels
    pipe.vae.register_to_config(
        latents_mean=[0.4 * number - 0.5 for number in range(count)],
        latents_std=[1.5 + 0.5 * number for number in range(count)],
    )
    return pipe


def decoded(model: HookedDiffusion, latents: Tensor, settings: dict[str, Any]) -> Tensor:
    size = {name: settings[name] for name in ("height", "width") if name in settings}
    return model.decode_latents(latents, output_type="pt", **size)


@pytest.mark.parametrize("family", FAMILIES)
def test_decoded_latents_are_the_pipelines_own_image(family: str) -> None:
    model = HookedDiffusion(with_mean(family))
    settings = short(family, output_type="pt")
    out = model(**settings)
    assert torch.equal(decoded(model, latents_of(out), settings), out.images)


def test_a_mean_of_latents_changes_the_image_of_sdxl_and_of_no_other() -> None:
    for family in FAMILIES:
        settings = short(family, output_type="pt")
        latents = HookedDiffusion(fresh_pipe(family))(**settings).latents
        assert latents is not None
        plain, shifted = (
            decoded(HookedDiffusion(pipe), latents, settings)
            for pipe in (fresh_pipe(family), with_mean(family))
        )
        assert torch.equal(plain, shifted) == (family != "sdxl")


@pytest.mark.parametrize("given", ["latents_mean", "latents_std"])
def test_a_mean_without_a_spread_does_not_count(given: str) -> None:
    pipe = fresh_pipe("sdxl")
    pipe.vae.register_to_config(**{given: [2.0] * pipe.vae.config.latent_channels})
    model, settings = HookedDiffusion(pipe), short("sdxl", steps=1, output_type="pt")
    out = model(**settings)
    assert torch.equal(decoded(model, latents_of(out), settings), out.images)


def test_an_encoded_image_is_image_to_images_own() -> None:
    from diffusers import StableDiffusionXLImg2ImgPipeline

    for pipe in (with_mean("sdxl"), fresh_pipe("sdxl")):
        model = HookedDiffusion(pipe)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            other: Any = StableDiffusionXLImg2ImgPipeline(**pipe.components)
        image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        expected = other.prepare_latents(
            image * 2 - 1,
            None,
            batch_size=1,
            num_images_per_prompt=1,
            dtype=torch.float32,
            device=torch.device("cpu"),
            generator=torch.Generator().manual_seed(5),
            add_noise=False,
        )
        found = model.encode_image(image, seed=5)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
        assert torch.equal(HookedDiffusion(other).encode_image(image, seed=5), found)


def test_encoding_is_the_inverse_of_decoding() -> None:
    class Identity(torch.nn.Module):
        """A VAE that shows what it is given."""

        dtype, device = torch.float32, torch.device("cpu")

        def __init__(self, config: Any) -> None:
            super().__init__()
            self.config = config

        def encode(self, pixels: Tensor) -> Any:
            return type("Encoded", (), {"latents": pixels.repeat(1, 2, 1, 1)[:, :4]})

        def decode(self, latents: Tensor, **_more: Any) -> tuple[Tensor]:
            return (latents[:, :3],)

    pipe = with_mean("sdxl")
    pipe.vae = Identity(pipe.vae.config)
    model = HookedDiffusion(pipe)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    again = model.decode_latents(model.encode_image(image), output_type="pt")
    torch.testing.assert_close(again, image, rtol=1e-5, atol=1e-5)
