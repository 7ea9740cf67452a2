"""Every family keeps the contract of STYLE: read-only, once, p @ v, edits, heads, sums, streams."""

import pytest
import torch

from diffusion_lens.errors import ContractError, UnknownHookPointError, UnsupportedModelError
from diffusion_lens.testing import (
    TINY_FAMILIES,
    check_architecture,
    inspect_architecture,
    tiny_denoiser,
)
from diffusion_lens.testing.report import CLAUSES
from diffusion_lens.testing.tolerances import TOLERANCES

QUICK = ("sd3",)
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@pytest.mark.parametrize(
    ("family", "precision"),
    [
        pytest.param(family, precision, marks=() if family in QUICK else pytest.mark.slow)
        for family in TINY_FAMILIES
        for precision in PRECISIONS
    ],
)
def test_every_family_keeps_the_contract(family: str, precision: str) -> None:
    denoiser, inputs = tiny_denoiser(family, dtype=PRECISIONS[precision])
    weights = {name: value.clone() for name, value in denoiser.state_dict().items()}
    report = check_architecture(denoiser, inputs)
    assert report.ok
    assert set(report.checked) == set(CLAUSES)
    assert report.skipped == ()
    assert all(torch.equal(weights[name], value) for name, value in denoiser.state_dict().items())


@pytest.mark.slow
def test_the_report_lists_every_clause() -> None:
    denoiser, inputs = tiny_denoiser("sd3")
    text = str(check_architecture(denoiser, inputs, points="blocks.0.attn.*.hook_v"))
    assert text.startswith("contract of SD3Transformer2DModel in float32\n(1) ")
    assert len(text.splitlines()) == 1 + len(CLAUSES)
    assert "failures" not in text


@pytest.mark.slow
def test_an_odd_batch_leaves_out_the_branches_and_says_so() -> None:
    denoiser, inputs = tiny_denoiser("sd3", batch=1)
    report = check_architecture(denoiser, inputs, points="blocks.0.attn.img.hook_z")
    assert report.skipped == ("two branches in a batch of 1: give a call with an even batch",)


def test_points_that_match_nothing_are_an_error() -> None:
    denoiser, inputs = tiny_denoiser("sd3")
    with pytest.raises(UnknownHookPointError, match="hook_zz"):
        check_architecture(denoiser, inputs, points="blocks.0.attn.img.hook_zz")


def test_an_unknown_precision_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(TOLERANCES, torch.float32)
    denoiser, inputs = tiny_denoiser("sd3")
    with pytest.raises(UnsupportedModelError, match=r"cannot be checked in torch\.float32, only"):
        check_architecture(denoiser, inputs)


@pytest.mark.slow
def test_a_denoiser_that_differs_from_run_to_run_is_reported() -> None:
    denoiser, inputs = tiny_denoiser("sd3")
    denoiser.register_forward_hook(lambda _module, _args, out: (out[0] + torch.rand(()),))
    report = inspect_architecture(
        denoiser, inputs | {"return_dict": False}, points="hook_noise_pred"
    )
    assert 1 in report.failed
    assert "the same output twice" in str(report)


@pytest.mark.slow
def test_failures_are_raised_with_point_expected_and_found() -> None:
    denoiser, inputs = tiny_denoiser("sd3")
    denoiser.register_forward_hook(lambda _module, _args, out: (out[0] + torch.rand(()),))
    with pytest.raises(ContractError, match=r"expected .*; found a difference of up to"):
        check_architecture(denoiser, inputs | {"return_dict": False}, points="hook_noise_pred")
