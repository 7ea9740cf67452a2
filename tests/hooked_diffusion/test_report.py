"""The report of what hooks did."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lens import HookedDiffusion
from diffusion_lens.hooked_diffusion.report import Report
from tests.pipelines import shared_pipe, short


def test_a_report_waits_for_the_device_once_however_many_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, waits = HookedDiffusion(shared_pipe("sd")), []
    with model.hooks([("**.hook_resid_post", lambda value, _hook: value + 2)]):
        model(**short("sd"))
        registrations = model.wiring.registrations
        for name in ("tolist", "item", "__float__"):
            original = getattr(Tensor, name)

            def counting(self: Tensor, original: Any = original) -> Any:
                waits.append(self.shape)
                return original(self)

            monkeypatch.setattr(Tensor, name, counting)
        report = Report.of(registrations)
    assert len(report) > 3 and waits == [(len(report),)]
    assert all(row.change == pytest.approx(2, rel=1e-3) and row.edited > 1 for row in report)


def test_hooks_that_only_read_have_no_change() -> None:
    model = HookedDiffusion(shared_pipe("sd"))
    seen: list[torch.Size] = []
    hooks = [("blocks.0.img.hook_resid_post", lambda value, _hook: seen.append(value.shape))]
    (row,) = model.run_with_hooks(**short("sd"), fwd_hooks=hooks).report
    assert seen and (row.edited, row.change) == (0, 0.0)
