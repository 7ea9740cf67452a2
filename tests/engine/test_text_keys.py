"""Keys of words in cross-attention are those that the model itself makes of the same text."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diffusion_lens import HookedDiffusion
from diffusion_lens.architectures import architectures
from diffusion_lens.engine.text_keys import text_context, text_keys
from diffusion_lens.errors import UnsupportedModelError
from diffusion_lens.testing import tiny_denoiser

FAMILIES = (
    "pixart",
    "wan",
    "ltx_video",
    "sdxl",
    "wan_i2v",
    "sana",
    "sana_video",
    "allegro",
    "chrono_edit",
    "skyreels_v2",
    "wan_animate",
    "wan_vace",
)
EVERY = [
    pytest.param(name, marks=() if name in ("pixart", "wan") else pytest.mark.slow)
    for name in FAMILIES
]

pytestmark = pytest.mark.filterwarnings("ignore")


def test_every_family_that_says_how_text_enters_is_here() -> None:
    said = {spec.denoiser for spec in architectures().values() if spec.to_context is not None}
    assert said == {type(tiny_denoiser(name)[0]).__name__ for name in FAMILIES}


@pytest.mark.parametrize("name", EVERY)
def test_they_are_those_of_a_call_with_that_text(name: str) -> None:
    denoiser, inputs = tiny_denoiser(name)
    model: Any = HookedDiffusion(denoiser)
    points = [one for one in model.points if one.endswith("cross_attn.txt.hook_k")]
    assert points
    with model.caching(points) as cache, torch.no_grad():
        denoiser(**inputs)
    text = inputs[model.spec.text][0].flatten(0, -2)  # Allegro's has an axis more
    with torch.no_grad():
        context = text_context(denoiser, model.spec, text)
    for point in points:
        attention = denoiser.get_submodule(model.points[point].module)
        found = text_keys(attention, context).transpose(0, 1)
        torch.testing.assert_close(found, cache[point][0, 0], rtol=1e-4, atol=1e-5)


def test_where_it_is_not_said_it_is_refused() -> None:
    denoiser, inputs = tiny_denoiser("cosmos")
    model = HookedDiffusion(denoiser)
    with pytest.raises(UnsupportedModelError, match=r"is not described.*cross_attn\.txt\.hook_k"):
        text_context(denoiser, model.spec, inputs["encoder_hidden_states"][0])


def test_a_norm_over_something_else_is_refused() -> None:
    denoiser, inputs = tiny_denoiser("wan")
    attention: Any = denoiser.get_submodule("blocks.0.attn2")
    attention.norm_k = torch.nn.RMSNorm(3)
    context = torch.zeros(2, attention.to_k.in_features)
    with pytest.raises(UnsupportedModelError, match="norms keys over 3 channels"):
        text_keys(attention, context)
    assert inputs
