"""Edits with little effect: rounding is no alarm, and what is wrong is still found, in float64."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion_lens.architectures import architecture_of, registry
from diffusion_lens.architectures.spec import BlockSpec, Gate
from diffusion_lens.engine import attention as attention_engine
from diffusion_lens.engine import firing, readers
from diffusion_lens.testing import ContractReport, inspect_architecture, precise, tiny_denoiser

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WEAK = {torch.float32: 5e-6, torch.bfloat16: 3e-3}
"""What is left of a block's updates: some ten roundings of the residual or less."""

POINTS = ("blocks.1.attn.img.hook_z", "blocks.1.attn.img.hook_v", "blocks.1.img.hook_resid_post")


@pytest.fixture(params=PRECISIONS.values(), ids=list(PRECISIONS))
def weak(request: pytest.FixtureRequest) -> tuple[nn.Module, dict[str, Any]]:
    """A tiny SD3 whose middle block adds next to nothing."""
    denoiser, inputs = tiny_denoiser("sd3", dtype=request.param)
    block: Any = denoiser.get_submodule("transformer_blocks.1")
    layers = (block.attn.to_out[0], block.attn.to_add_out, block.ff.net[2], block.ff_context.net[2])
    with torch.no_grad():
        for weight in (weight for layer in layers for weight in layer.parameters()):
            weight.mul_(WEAK[request.param])
    return denoiser, inputs


def inspect(weak: tuple[nn.Module, dict[str, Any]]) -> ContractReport:
    return inspect_architecture(*weak, points=POINTS)


def found(report: ContractReport, clause: int) -> list[str]:
    """Where the weak block breaks a clause."""
    failed = [str(one) for one in report.failures if one.clause == clause]
    return [line for line in failed if line.startswith("blocks.1.")]


@pytest.fixture
def describe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    def describe(change: Callable[[BlockSpec], BlockSpec]) -> None:
        spec = architecture_of("SD3Transformer2DModel")
        original = spec.blocks["JointTransformerBlock"]
        blocks = {"JointTransformerBlock": lambda module: change(original(module))}
        name = "SD3Transformer2DModel"
        monkeypatch.setitem(registry._REGISTERED, name, replace(spec, blocks=blocks))

    return describe  # type: ignore[return-value]


@pytest.mark.slow
def test_little_effect_is_no_alarm(weak: tuple[nn.Module, dict[str, Any]]) -> None:
    report = inspect(weak)
    assert report.ok, str(report)
    assert report.skipped == ()


def in_precision(name: str) -> pytest.MarkDecorator:
    """One precision for a test that either would do for; a contract takes a second."""
    return pytest.mark.parametrize("weak", [PRECISIONS[name]], indirect=True, ids=[name])


@pytest.mark.slow
@in_precision("float32")
def test_a_wrong_gate_of_small_updates_fails_clause_6(
    describe: Callable[..., None], weak: tuple[nn.Module, dict[str, Any]]
) -> None:
    def shifted(spec: BlockSpec) -> BlockSpec:
        mlp = replace(spec.mlps["img"], gate=Gate("norm1", 3))
        return replace(spec, mlps={**spec.mlps, "img": mlp})

    describe(shifted)
    lines = found(inspect(weak), 6)
    assert any("img.hook_resid_post" in line and "(in float64)" in line for line in lines)


@pytest.mark.slow
@in_precision("bfloat16")
def test_permuted_heads_of_little_effect_fail_clauses_5_and_7(
    monkeypatch: pytest.MonkeyPatch, weak: tuple[nn.Module, dict[str, Any]]
) -> None:
    original = firing.run

    def permuted(tap: Any, given: Tensor, context: Any) -> tuple[Tensor, bool]:
        if "head" not in context.axes:
            return original(tap, given, context)
        axis = context.axis("head")
        after, changed = original(tap, given.roll(1, axis), context)
        return (after.roll(-1, axis), True) if changed else (given, False)

    monkeypatch.setattr(firing, "run", permuted)
    monkeypatch.setattr(attention_engine, "run", permuted)
    report = inspect(weak)
    assert any("hook_z: expected scaling heads" in line for line in found(report, 5))
    assert any("hook_v: expected scaling its heads" in line for line in found(report, 7))


@pytest.mark.slow
@in_precision("float32")
def test_an_edit_that_half_arrives_fails_clause_6(
    monkeypatch: pytest.MonkeyPatch, weak: tuple[nn.Module, dict[str, Any]]
) -> None:
    original = readers.fire

    def halved(taps: Any, value: Tensor, *rest: Any, **more: Any) -> Tensor:
        after = original(taps, value, *rest, **more)
        name = taps[0].point.name
        return (after + value) / 2 if name == "blocks.1.img.hook_resid_post" else after

    monkeypatch.setattr(readers, "fire", halved)
    lines = found(inspect(weak), 6)
    assert any("img.hook_resid_post: expected setting it back" in line for line in lines)


@pytest.mark.slow
@in_precision("bfloat16")
def test_what_no_precision_can_decide_is_listed_and_not_passed(
    monkeypatch: pytest.MonkeyPatch, weak: tuple[nn.Module, dict[str, Any]]
) -> None:
    monkeypatch.setattr(precise, "LARGEST_COPY", 1)
    report = inspect(weak)
    assert report.ok
    assert report.skipped
    assert all("a copy in float64 would take 0.0 GiB" in reason for reason in report.skipped)
    assert any(reason.startswith("blocks.1.") for reason in report.skipped)


@pytest.mark.slow
@in_precision("bfloat16")
def test_a_model_that_does_not_run_in_float64_is_not_judged_by_it(
    weak: tuple[nn.Module, dict[str, Any]],
) -> None:
    denoiser, _ = weak

    def refuse(_module: nn.Module, _args: Any, output: Any) -> None:
        if output[0].dtype == torch.float64:
            raise RuntimeError("no such kernel")

    denoiser.register_forward_hook(refuse)
    report = inspect(weak)
    assert report.ok
    assert any("no copy in float64: RuntimeError: no such kernel" in one for one in report.skipped)
