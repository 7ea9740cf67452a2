"""What is shipped beside what an evaluation shows, field by field."""

from typing import Any

import pytest
import torch
from torch import nn

from diffusion_lens.architectures import architecture_of
from diffusion_lens.describing import compare_with_evaluation
from diffusion_lens.errors import DiffusionLensError
from diffusion_lens.testing import TINY_FAMILIES, tiny_denoiser
from tests.contract.wrong_fields import WRONG

LEFT_OPEN = {
    "hunyuan_video_15": ["no input moves 5 tokens of `encoder_hidden_states`"],
    "auraflow": [
        "no input moves 8 tokens of `encoder_hidden_states`",
        "no input moves 8 tokens of `hidden_states`",
    ],
}
"""Tokens that are the same whatever the prompt: those of an image that is missing, registers."""


def compared(family: str, dtype: torch.dtype) -> tuple[list[str], list[str]]:
    denoiser, inputs = tiny_denoiser(family, dtype=dtype)
    return compare_with_evaluation(spec_of(denoiser), denoiser, inputs)


def spec_of(denoiser: nn.Module) -> Any:
    return architecture_of(type(denoiser).__name__)


@pytest.mark.filterwarnings("ignore")  # models warn about kernels in float16
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_what_is_described_is_what_runs(family: str) -> None:
    found, left_open = compared(family, torch.float16)
    assert found == []
    assert left_open == LEFT_OPEN.get(family, [])


NOT_IN_THE_BLOCKS = (
    "timestep's embedding is the output",
    "prediction is the text's embedding",
)
"""What clause 8 and clause 2 of the contract see."""


def _wrong_ones() -> list[Any]:
    families = {"flux": (), "flux2": pytest.mark.slow, "hunyuan_video": pytest.mark.slow}
    return [
        pytest.param(family, wrong, marks=marks)
        for family, marks in families.items()
        for wrong in WRONG
        if wrong not in NOT_IN_THE_BLOCKS
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("family", "wrong"), _wrong_ones())
def test_a_wrong_field_is_not_what_runs(family: str, wrong: str) -> None:
    denoiser, inputs = tiny_denoiser(family)
    try:
        found, _ = compare_with_evaluation(WRONG[wrong](spec_of(denoiser)), denoiser, inputs)
    except (DiffusionLensError, AttributeError, KeyError) as error:
        pytest.skip(str(error))
    assert found
