"""What serves the image alone is left out where a block runs for concepts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diffusion_lens import HookedDiffusion, Site
from diffusion_lens.architectures.catalogue import find_blocks
from diffusion_lens.engine.idle_stream import idle, idle_layers
from tests.pipelines import shared_pipe, short

OWN = {"norm1.linear", "attn.to_out.0", "ff.net.0.proj", "ff.net.2"}
SECOND_ATTENTION = {f"attn2.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")}


def names(model: HookedDiffusion, block: int) -> set[str]:
    """Paths inside a block of the layers that serve the image alone."""
    site = find_blocks(model.denoiser, model.spec)[block]
    module = model.denoiser.get_submodule(site.path)
    layers = idle_layers(model.denoiser, site)
    return {name for name, one in module.named_modules() if any(one is layer for layer in layers)}


@pytest.mark.parametrize(
    ("family", "block", "expected"),
    [
        ("flux", 0, OWN),
        ("flux", -1, set()),
        ("sd3", 0, OWN),
        ("sd35", 0, OWN | SECOND_ATTENTION),
        ("cogvideox", 0, set()),
    ],
)
def test_layers_that_text_shares_are_not_among_them(
    family: str, block: int, expected: set[str]
) -> None:
    assert names(HookedDiffusion(shared_pipe(family)), block) == expected


@pytest.mark.parametrize("family", ["flux", "sd3", "sd35"])
def test_each_runs_once_in_an_evaluation(family: str) -> None:
    model = HookedDiffusion(shared_pipe(family))
    blocks = find_blocks(model.denoiser, model.spec)
    layers = {id(one) for block in blocks for one in idle_layers(model.denoiser, block)}
    weights = {one.weight.data_ptr() for one in model.denoiser.modules() if id(one) in layers}
    read: list[int] = []
    linear = torch.nn.functional.linear

    def counting(given: Any, weight: Any, *rest: Any) -> Any:
        read.append(weight.data_ptr())
        return linear(given, weight, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", counting)
        with model.concept_streams(["cat"]):
            model.run_with_hooks(
                fwd_hooks=[(Site("blocks.*.attn.concept.hook_z"), lambda *_: None)],
                **short(family, steps=1),
            )
    calls = [read.count(weight) for weight in weights]
    evaluations = read.count(model.denoiser.proj_out.weight.data_ptr())
    assert calls and calls == [evaluations] * len(calls)


def test_a_forward_of_its_own_comes_back_after_an_error() -> None:
    offloaded, plain = torch.nn.Linear(4, 6), torch.nn.Linear(4, 6)
    offloaded.forward = own = lambda given: given  # as offloading leaves it
    with pytest.raises(RuntimeError, match="inside"), idle([offloaded, plain]):
        assert torch.equal(plain(torch.ones(2, 3, 4)), torch.zeros(2, 3, 6))
        assert torch.equal(offloaded(torch.ones(2, 4)), torch.zeros(2, 6))
        raise RuntimeError("inside")
    assert offloaded.__dict__["forward"] is own
    assert "forward" not in plain.__dict__
