"""What serves the image alone is left out where a block runs for concepts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diffusion_lens import HookContext, HookedDiffusion, Site
from diffusion_lens.architectures.catalogue import find_blocks
from diffusion_lens.concept_streams.idle_stream import image_layers, left_out
from tests.pipelines import fresh_pipe, shared_pipe, short

OWN = {"norm1.linear", "attn.to_out.0", "ff.net.0.proj", "ff.net.2"}
SECOND_ATTENTION = {f"attn2.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")}


def names(model: HookedDiffusion, block: int) -> set[str]:
    """Paths inside a block of the layers that serve the image alone."""
    site = find_blocks(model.denoiser, model.spec)[block]
    module = model.denoiser.get_submodule(site.path)
    layers = image_layers(model.denoiser, site)
    return {name for name, one in module.named_modules() if any(one is layer for layer in layers)}


@pytest.mark.parametrize(
    ("family", "block", "expected"),
    [
        ("flux", 0, OWN),
        ("flux", -1, set()),
        ("sd3", 0, OWN),
        ("sd3", -1, OWN),  # its text ends after the attention
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
    layers = {id(one) for block in blocks for one in image_layers(model.denoiser, block)}
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
    offloaded.forward = own = lambda input: input  # as offloading leaves it
    with pytest.raises(RuntimeError, match="inside"), left_out([offloaded, plain], lambda: 0):
        assert torch.equal(plain(torch.ones(2, 3, 4)), torch.zeros(2, 3, 6))
        assert torch.equal(offloaded(torch.ones(2, 4)), torch.zeros(2, 6))
        raise RuntimeError("inside")
    assert offloaded.__dict__["forward"] is own
    assert "forward" not in plain.__dict__


def test_a_hook_that_calls_such_a_layer_gets_what_it_gives() -> None:
    model = HookedDiffusion(shared_pipe("flux"))
    out = model.denoiser.transformer_blocks[0].attn.to_out[0]
    found: list[tuple[torch.Tensor, torch.Tensor]] = []

    def project(z: torch.Tensor, _hook: HookContext) -> None:
        weight, bias = out.weight, out.bias
        found.append((out(z.flatten(2)), torch.nn.functional.linear(z.flatten(2), weight, bias)))

    with model.concept_streams(["cat"]):
        hooks = [("blocks.0.attn.concept.hook_z", project)]
        model.run_with_hooks(fwd_hooks=hooks, **short("flux", steps=1))
    assert found and all(torch.equal(*pair) and pair[0].any() for pair in found)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["flux", "sd35"])
def test_concepts_are_the_same_where_accelerate_moves_the_weights(family: str) -> None:
    accelerate = pytest.importorskip("accelerate")

    def concept_z(pipe: Any) -> dict[str, torch.Tensor]:
        model = HookedDiffusion(pipe)
        with model.concept_streams(["cat"]):
            _, cache = model.run_with_cache(
                names_filter="blocks.*.attn.concept.hook_z", **short(family, steps=1)
            )
        return dict(cache.items())

    expected = concept_z(shared_pipe(family))
    pipe = fresh_pipe(family)
    accelerate.cpu_offload(pipe.transformer, execution_device=torch.device("cpu"))
    found = concept_z(pipe)
    assert expected.keys() == found.keys() and expected
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert all("stand_in" not in repr(one.forward) for one in pipe.transformer.modules())
