"""Every family keeps the contract of STYLE: read-only, once, p @ v, edits, heads, sums, streams."""

from typing import Any

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
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MOST_USED = ("sd1", "sdxl", "sd35_medium", "flux", "cogvideox", "flux2", "z_image", "qwen_image")
MOST_USED += ("wan", "krea2", "ltx_video")
"""Checked whole at each `make check`, of the others the first block; the rest is `exhaustive`."""

HALF = ("sd3", "flux", "wan", "krea2")
"""Those checked in bfloat16, too."""

LINEAR = ("sana", "sana_video")
"""Without a pattern in self-attention, nothing of clause 3 is left to check there."""

UNCHECKED = {"flux3": ("hook_timestep_emb: the call has no argument 'timestep'",)}


def _mark(family: str, precision: str) -> Any:
    if family in QUICK and precision == "float32":
        return ()
    usual = family in {"float32": MOST_USED, "bfloat16": HALF}.get(precision, ())
    return pytest.mark.slow if usual else pytest.mark.exhaustive


@pytest.mark.parametrize(
    ("family", "precision"),
    [
        pytest.param(family, precision, marks=_mark(family, precision))
        for family in TINY_FAMILIES
        for precision in PRECISIONS
    ],
)
def test_every_family_keeps_the_contract(family: str, precision: str) -> None:
    denoiser, inputs = tiny_denoiser(family, dtype=PRECISIONS[precision])
    weights = {name: value.clone() for name, value in denoiser.state_dict().items()}
    report = check_architecture(denoiser, inputs)
    assert report.ok
    assert set(report.checked) | ({3} if family in LINEAR else set()) == set(CLAUSES)
    assert report.skipped == UNCHECKED.get(family, ())
    assert all(torch.equal(weights[name], value) for name, value in denoiser.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", [name for name in TINY_FAMILIES if name not in (*QUICK, *MOST_USED)]
)
def test_the_first_block_of_every_family_keeps_the_contract(family: str) -> None:
    denoiser, inputs = tiny_denoiser(family)
    first = ("blocks.0.", "hook_")
    assert check_architecture(denoiser, inputs, points=lambda name: name.startswith(first)).ok


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
