"""Routers of mixtures of experts, beside the same values by torch hooks and by hand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_lens import HookedDiffusion
from diffusion_lens.architectures.spec import BlockSpec
from diffusion_lens.errors import DeadHookPointError
from diffusion_lens.testing import tiny_denoiser
from diffusion_lens.testing.clauses_experts import experts_are_chosen
from diffusion_lens.testing.report import Findings
from diffusion_lens.testing.subject import Subject


def model_of(family: str) -> tuple[HookedDiffusion, Any, dict[str, Any]]:
    denoiser, inputs = tiny_denoiser(family)
    return HookedDiffusion(denoiser), denoiser, inputs


def predicted(denoiser: nn.Module, inputs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return denoiser(**inputs, return_dict=False)[0]


def recorded(model: HookedDiffusion, inputs: dict[str, Any], base: str) -> dict[str, Tensor]:
    """The points of one MLP, and its output."""
    names = [*model.hook_names(f"{base}.mlp.*"), f"{base}.hook_mlp_out"]
    with torch.no_grad(), model.caching(names) as cache:
        model.denoiser(**inputs)
    return {name.removeprefix(f"{base}."): cache.at(step=0)[name] for name in names}


@contextlib.contextmanager
def seen(module: nn.Module) -> Iterator[list[Any]]:
    """Arguments and output of each call of a module, by a torch hook."""
    calls: list[Any] = []
    handle = module.register_forward_hook(lambda _m, args, out: calls.append((args, out)))
    try:
        yield calls
    finally:
        handle.remove()


def test_hidreams_tokens_choose_experts_whose_outputs_are_weighted() -> None:
    model, denoiser, inputs = model_of("hidream")
    mlp = denoiser.double_stream_blocks[0].block.ff_i
    found = recorded(model, inputs, "blocks.0.img")
    with torch.no_grad(), seen(mlp) as calls:
        denoiser(**inputs)
        ((given,), output) = calls[0]
        logits = F.linear(given, mlp.gate.weight)
        by_hand = mlp.shared_experts(given).clone()
        for sample in (0,):
            for token in range(given.shape[1]):
                scores = logits[sample, token].softmax(-1)
                best = scores.argsort(descending=True)[: mlp.gate.top_k]
                assert set(best.tolist()) == set(found["mlp.hook_experts"][sample, token].tolist())
                for place, expert in enumerate(found["mlp.hook_experts"][sample, token].tolist()):
                    weight = found["mlp.hook_expert_weights"][sample, token, place]
                    assert torch.isclose(weight, scores[expert])
                    by_hand[sample, token] += weight * mlp.experts[expert](given[sample, token])
    assert torch.allclose(found["mlp.hook_router_logits"], logits, atol=1e-6)
    assert torch.allclose(found["hook_mlp_out"], output)
    assert torch.allclose(by_hand[0], output[0], atol=1e-5)
    table = model.hook_table("blocks.0.img.mlp.*")
    assert {row.name: row.axes for row in table if "expert" in row.name} == {
        "blocks.0.img.mlp.hook_experts": ("batch", "pos", "choice"),
        "blocks.0.img.mlp.hook_expert_weights": ("batch", "pos", "choice"),
    }


def test_an_edit_of_hidreams_logits_is_that_of_its_gate() -> None:
    model, denoiser, inputs = model_of("hidream")
    plain = predicted(denoiser, inputs)
    gate = denoiser.single_stream_blocks[0].block.ff_i.gate
    noise = torch.randn(gate.weight.shape[0], generator=torch.Generator().manual_seed(0))
    name = "blocks.2.img.mlp.hook_router_logits"
    length = {}

    def push(logits: Tensor, _hook: Any) -> Tensor:
        length["img"] = logits.shape[1]
        return logits + noise

    with model.hooks([(name, push)]):
        edited = predicted(denoiser, inputs)

    def in_place(_gate: nn.Module, args: tuple, _output: Any) -> Any:
        batch, total, width = args[0].shape
        logits = F.linear(args[0].view(-1, width), gate.weight, None).view(batch, total, -1)
        logits[:, : length["img"]] += noise  # the image goes first
        weights, experts = logits.view(batch * total, -1).softmax(-1).topk(2, sorted=False)
        return experts, weights, None

    handle = gate.register_forward_hook(in_place)
    by_torch = predicted(denoiser, inputs)
    handle.remove()
    assert torch.equal(edited, by_torch)
    assert not torch.equal(edited, plain)
    assert torch.equal(predicted(denoiser, inputs), plain)


def test_nucleus_experts_choose_tokens() -> None:
    model, denoiser, inputs = model_of("nucleus")
    at = next(at for at, one in enumerate(denoiser.transformer_blocks) if one.moe_enabled)
    layer = denoiser.transformer_blocks[at].img_mlp
    base = f"blocks.{at}.img"
    found = recorded(model, inputs, base)
    with torch.no_grad(), seen(layer.gate) as calls:
        denoiser(**inputs)
    ((_, logits),) = calls
    assert torch.equal(found["mlp.hook_router_logits"], logits)
    taken = found["mlp.hook_expert_tokens"]
    assert taken.shape[:2] == (len(logits), layer.num_experts)
    scores = logits.softmax(-1)
    for sample in range(len(logits)):
        for expert in range(layer.num_experts):
            best = scores[sample, :, expert].argsort(descending=True)[: taken.shape[-1]]
            assert set(best.tolist()) == set(taken[sample, expert].tolist())
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    with model.hooks([(f"{base}.mlp.hook_router_logits", lambda value, _hook: value + noise)]):
        edited = predicted(denoiser, inputs)
    handle = layer.gate.register_forward_hook(lambda _m, _a, out: out + noise)
    by_torch = predicted(denoiser, inputs)
    handle.remove()
    assert torch.equal(edited, by_torch)
    assert not torch.equal(edited, predicted(denoiser, inputs))


@pytest.mark.parametrize(
    ("family", "name"),
    [("hidream", "blocks.0.img.mlp.hook_experts"), ("nucleus", "**.hook_expert_tokens")],
)
def test_a_choice_cannot_be_edited(family: str, name: str) -> None:
    model, denoiser, inputs = model_of(family)
    plain = predicted(denoiser, inputs)
    with (
        pytest.raises(DeadHookPointError, match="follows from the router's logits"),
        model.hooks([(name, lambda value, _hook: value * 0)]),
    ):
        predicted(denoiser, inputs)
    assert torch.equal(predicted(denoiser, inputs), plain)


@pytest.mark.parametrize(
    ("family", "wrong"),
    [
        ("hidream", {"weights": 0}),
        ("hidream", {"logits": "ff_i.shared_experts.w2"}),
        ("nucleus", {"scores": "sigmoid"}),
        ("nucleus", {"logits": "img_mlp.shared_expert.net.2"}),
        ("nucleus", {"chooser": "token"}),
    ],
)
def test_the_contract_finds_a_wrong_router(family: str, wrong: dict[str, Any]) -> None:
    denoiser, inputs = tiny_denoiser(family)
    spec = HookedDiffusion(denoiser).spec

    def described(describe: Any) -> Any:
        def changed(block: nn.Module) -> BlockSpec:
            found = describe(block)
            mlps = {
                name: mlp
                if mlp.router is None
                else replace(mlp, router=replace(mlp.router, **wrong))
                for name, mlp in found.mlps.items()
            }
            return replace(found, mlps=mlps)

        return changed

    blocks = {name: described(describe) for name, describe in spec.blocks.items()}
    points = "**.img.mlp.hook_router_logits"
    subject = Subject(denoiser, inputs, points=points, spec=replace(spec, blocks=blocks))
    findings = Findings()
    with contextlib.suppress(RuntimeError):  # what has another shape cannot be a choice of these
        experts_are_chosen(subject, findings)
        assert findings.failures
