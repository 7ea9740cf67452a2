"""One wrong field at a time in a right description: the contract, or wrapping, says which."""

from typing import Any

import pytest

from diffusion_lens.architectures import architecture_of, registry
from diffusion_lens.errors import DiffusionLensError
from diffusion_lens.testing import inspect_architecture, tiny_denoiser
from tests.contract.wrong_fields import WRONG

FAMILIES = ("flux", "flux2", "hunyuan_video")
USUAL = (
    "joint order",
    "middle left out",
    "q and k before rope exchanged",
    "up layer in place of down",
    "single blocks left out",
    "timestep's embedding is the output",
)
"""What is tried at each `make check`; everything else is `exhaustive`."""


def _cases() -> list[Any]:
    return [
        pytest.param(
            family,
            wrong,
            marks=pytest.mark.slow
            if family == "flux" and wrong in USUAL
            else pytest.mark.exhaustive,
        )
        for family in FAMILIES
        for wrong in WRONG
    ]


@pytest.mark.parametrize(("family", "wrong"), _cases())
def test_a_wrong_field_is_caught(family: str, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser, inputs = tiny_denoiser(family)
    spec = architecture_of(type(denoiser).__name__)
    monkeypatch.setitem(registry._REGISTERED, spec.denoiser, WRONG[wrong](spec))
    try:
        report = inspect_architecture(denoiser, inputs, points=_in_the_first_or_last_block)
    except DiffusionLensError:
        return
    assert not report.ok


def _in_the_first_or_last_block(name: str) -> bool:
    return name.startswith(("blocks.0.", "blocks.3.", "hook_"))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            "no such module",
            r"FluxTransformerBlock, mlps\['img'\]\.down: no module `ff.net.3`; closest: ff.net.2",
        ),
        (
            "no such argument",
            r"streams\['img'\]\.argument: no argument `hidden_state`; closest: hidden_states",
        ),
    ],
)
def test_wrapping_names_block_and_field(
    wrong: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser, inputs = tiny_denoiser("flux")
    spec = architecture_of(type(denoiser).__name__)
    monkeypatch.setitem(registry._REGISTERED, spec.denoiser, WRONG[wrong](spec))
    with pytest.raises(DiffusionLensError, match=said):
        inspect_architecture(denoiser, inputs)
