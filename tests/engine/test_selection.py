"""Indices on devices: made once, the same as from lists."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffusion_lens import HookedDiffusion, Site
from diffusion_lens.engine import noise, selection
from diffusion_lens.engine.selection import as_factors, as_tensor, numbers, positions
from diffusion_lens.interventions import ablate_heads, scale_heads, scale_token_columns
from tests.pipelines import fresh_pipe, short


@given(st.integers(0, 9), st.sampled_from([None, slice(1, 7), slice(None, None, 2), (3, 0, 2)]))
def test_positions_are_the_numbers(length: int, index: Any) -> None:
    found = positions(index, length, torch.zeros(1))
    assert tuple(found.tolist()) == numbers(index, length) and found.dtype == torch.int64


def test_kept_indices_serve_autograd_after_inference() -> None:
    selection._kept.cache_clear()
    with torch.inference_mode():
        as_tensor((2, 0), torch.zeros(1))
        as_factors((2.0, 0.5), torch.zeros(1))
    given = torch.ones(3, requires_grad=True)
    taken = given.index_select(0, as_tensor((2, 0), given))
    (taken * as_factors((2.0, 0.5), given)).sum().backward()
    assert given.grad is not None and given.grad.tolist() == [0.5, 0.0, 2.0]


def test_factors_have_the_precision_of_the_activation() -> None:
    for dtype in (torch.float16, torch.float32, torch.float64):
        found = as_factors((0.1, 1), torch.zeros(1, dtype=dtype))
        assert torch.equal(found, torch.tensor([0.1, 1], dtype=dtype)) and found.dtype == dtype


def made_by_us(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the tensors that our own code makes of lists, each a wait on an accelerator."""
    found: Counter[str] = Counter()
    for name in ("tensor", "as_tensor"):
        original = getattr(torch, name)

        def counting(value: Any, *args: Any, original: Any = original, **kwargs: Any) -> Tensor:
            caller = sys._getframe(1).f_globals["__name__"]
            if caller.startswith("diffusion_lens.") and not isinstance(value, Tensor):
                found[caller] += 1
            return original(value, *args, **kwargs)

        monkeypatch.setattr(torch, name, counting)
    return found


def test_no_more_tensors_are_made_of_lists_however_many_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, counts = HookedDiffusion(fresh_pipe("sd")), []

    def doubles(activation: Tensor, _hook: Any) -> Tensor:
        return activation * 2

    hooks = [
        (Site("**.cross_attn.hook_pattern", key=[0, 2, 5], heads=[0, 1], branch="cond"), doubles),
        (Site("**.hook_resid_post", pos=[0, 2, 5]), doubles),
        (Site("**.cross_attn.img.hook_z", branch="cond"), scale_heads({(0, 0): 2.0, (1, 1): 0.5})),
        (
            Site("**.cross_attn.hook_pattern", key=[1, 3], branch="cond"),
            scale_token_columns({(0, 0): 2.0, (1, 1): 0.5}),
        ),
        (Site("**.attn.img.hook_z", branch="cond"), ablate_heads("resample")),
    ]
    for steps in (2, 5):
        selection._kept.cache_clear()
        with monkeypatch.context() as patch:
            found = made_by_us(patch)
            settings = short("sd", steps=steps)
            settings["latents"] = settings["latents"].expand(2, -1, -1, -1).clone()
            settings["prompt"] = ["a cat", "a dog"]
            model.run_with_hooks(**settings, fwd_hooks=hooks)
            counts.append(found)
    assert counts[0] == counts[1] and counts[0]["diffusion_lens.engine.selection"] > 0


def test_alphas_are_read_once_until_they_change(monkeypatch: pytest.MonkeyPatch) -> None:
    model, copies = HookedDiffusion(fresh_pipe("sd")), []
    original = Tensor.double

    def counting(self: Tensor) -> Tensor:
        copies.append(sys._getframe(1).f_globals["__name__"])
        return original(self)

    monkeypatch.setattr(Tensor, "double", counting)
    sigmas: list[float] = []
    hooks = [(Site("**.hook_resid_post"), lambda _value, hook: sigmas.append(hook.sigma))]
    model.run_with_hooks(**short("sd", steps=3), fwd_hooks=hooks)
    assert len(set(sigmas)) == 3 and len(sigmas) > 6
    assert copies.count(noise.__name__) == 1
    scheduler = model.pipe.scheduler  # type: ignore[union-attr]
    before = noise.noise_level(scheduler, 500).signal
    scheduler.alphas_cumprod *= 0.25
    assert noise.noise_level(scheduler, 500).signal == pytest.approx(before / 2)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod * 4
    assert noise.noise_level(scheduler, 500).signal == pytest.approx(before)
