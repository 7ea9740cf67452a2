"""A wrong description of an architecture, or a wrong engine, is reported by the clause for it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lens.architectures import architecture_of, registry
from diffusion_lens.architectures.spec import BlockSpec, Gate, Mid
from diffusion_lens.engine import attention as attention_engine
from diffusion_lens.engine import firing, readers
from diffusion_lens.engine.steps import StepTracker
from diffusion_lens.errors import UnsupportedModelError
from diffusion_lens.testing import ContractReport, inspect_architecture, tiny_denoiser
from diffusion_lens.testing.tiny import draw_weights

Change = Callable[[BlockSpec], BlockSpec]


@pytest.fixture
def describe(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Describe a family differently until the test ends."""

    def describe(denoiser: str, *, block: str = "", change: Change | None = None, **more: Any):
        spec = architecture_of(denoiser)
        blocks = dict(spec.blocks)
        if change is not None:
            original = blocks[block]
            blocks[block] = lambda module: change(original(module))
        monkeypatch.setitem(registry._REGISTERED, denoiser, replace(spec, blocks=blocks, **more))

    return describe


def inspect(
    family: str, *, text_tokens: int | None = None, points: Any = "blocks.1.**"
) -> ContractReport:
    """Give few points forwards of their own: what is read is checked everywhere anyway."""
    denoiser, inputs = tiny_denoiser(family)
    if text_tokens is not None:
        inputs["encoder_hidden_states"] = torch.randn(2, text_tokens, 24)
        inputs["txt_ids"] = torch.zeros(text_tokens, 3)
    return inspect_architecture(denoiser, inputs, points=points)


def swapped_streams(spec: BlockSpec) -> BlockSpec:
    """The joint sequence in the other order."""

    def other(streams: tuple[str, ...]) -> tuple[str, ...]:
        return streams[::-1]

    attentions = []
    for one in spec.attentions:
        projections = {
            stream: replace(projection, streams=other(projection.streams))
            for stream, projection in one.projections.items()
        }
        order = {"queries": other(one.queries), "keys": other(one.keys)}
        attentions.append(replace(one, projections=projections, **order))
    return replace(spec, attentions=tuple(attentions))


@pytest.mark.slow
@pytest.mark.parametrize("text_tokens", [None, 16], ids=["other_length", "same_length"])
@pytest.mark.parametrize("block", ["FluxTransformerBlock", "FluxSingleTransformerBlock"])
def test_a_swapped_joint_order_fails_clause_7(
    describe: Callable[..., None], block: str, text_tokens: int | None
) -> None:
    describe("FluxTransformer2DModel", block=block, change=swapped_streams)
    points = "blocks.*.attn.*.hook_v"
    report = inspect("flux", text_tokens=text_tokens, points=points)
    assert 7 in report.failed
    assert {1, 2}.isdisjoint(report.failed)
    moved = [str(failure) for failure in report.failures if failure.clause == 7]
    assert any("hook_v: expected nothing to move when only" in line for line in moved)


@pytest.mark.slow
def test_streams_swapped_all_through_the_family_fail_clause_7(
    describe: Callable[..., None],
) -> None:
    def renamed(spec: BlockSpec) -> BlockSpec:
        img, txt = spec.streams["img"], spec.streams["txt"]
        return replace(swapped_streams(spec), streams={"img": txt, "txt": img})

    describe("FluxTransformer2DModel", block="FluxTransformerBlock", change=renamed)
    report = inspect("flux", text_tokens=16, points="blocks.*.attn.*.hook_v")
    entered = [failure for failure in report.failures if "hook_resid_pre" in failure.where]
    assert 7 in {failure.clause for failure in entered}


@pytest.mark.slow
def test_a_swapped_joint_order_of_shared_weights_fails_clause_7(
    describe: Callable[..., None],
) -> None:
    block = "CogVideoXBlock"
    describe("CogVideoXTransformer3DModel", block=block, change=swapped_streams)
    report = inspect("cogvideox", points="blocks.*.attn.*.hook_v")
    assert 7 in report.failed
    assert {1, 2}.isdisjoint(report.failed)


@pytest.mark.slow
def test_swapped_rows_of_an_mlp_that_streams_share_fail_clause_6(
    describe: Callable[..., None],
) -> None:
    def swapped(spec: BlockSpec) -> BlockSpec:
        mlps = {name: replace(mlp, streams=mlp.streams[::-1]) for name, mlp in spec.mlps.items()}
        return replace(spec, mlps=mlps)

    describe("CogVideoXTransformer3DModel", block="CogVideoXBlock", change=swapped)
    report = inspect("cogvideox", points="blocks.1.*.hook_mlp_*")
    assert 6 in report.failed


@pytest.mark.slow
def test_exchanged_gates_of_two_streams_fail_clause_6(describe: Callable[..., None]) -> None:
    def exchanged(spec: BlockSpec) -> BlockSpec:
        (one,) = spec.attentions
        gates = {"img": one.gates["txt"], "txt": one.gates["img"]}
        return replace(spec, attentions=(replace(one, gates=gates),))

    describe("CogVideoXTransformer3DModel", block="CogVideoXBlock", change=exchanged)
    report = inspect("cogvideox", points="blocks.1.*.hook_resid_mid")
    assert 6 in report.failed


@pytest.mark.slow
def test_an_out_projection_of_the_other_stream_fails_clause_3(
    describe: Callable[..., None],
) -> None:
    def exchanged(spec: BlockSpec) -> BlockSpec:
        (one,) = spec.attentions
        if len(one.projections) < 2:
            return spec
        img, txt = one.projections["img"], one.projections["txt"]
        return replace(spec, attentions=(replace(one, projections={"img": txt, "txt": img}),))

    describe("SD3Transformer2DModel", block="JointTransformerBlock", change=exchanged)
    report = inspect("sd3")
    assert 3 in report.failed
    found = str(report.failures[0])
    assert "of stream 'img', and 7 arrive" in found and "another stream's projection" in found


@pytest.mark.slow
def test_a_wrong_gate_fails_clause_6(describe: Callable[..., None]) -> None:
    def shifted(spec: BlockSpec) -> BlockSpec:
        mlp = replace(spec.mlps["img"], gate=Gate("norm1", 3))  # the shift before the MLP
        return replace(spec, mlps={**spec.mlps, "img": mlp})

    describe("SD3Transformer2DModel", block="JointTransformerBlock", change=shifted)
    report = inspect("sd3")
    assert 6 in report.failed
    wrong = [failure.where for failure in report.failures if failure.clause == 6]
    assert "blocks.0.img.hook_resid_post" in wrong
    assert all(".img." in where for where in wrong)


@pytest.mark.slow
@pytest.mark.parametrize("module", ["norm2", "ff"])
def test_a_wrong_place_of_the_middle_fails_clause_6(
    describe: Callable[..., None], module: str
) -> None:
    def moved(spec: BlockSpec) -> BlockSpec:
        first, last = spec.streams["img"].mids
        mids = (first, Mid(last.name, module, last.updates))
        return replace(spec, streams={"img": replace(spec.streams["img"], mids=mids)})

    describe("UNet2DConditionModel", block="BasicTransformerBlock", change=moved)
    report = inspect("sd1")
    assert 6 in report.failed
    assert any(failure.where.endswith("img.hook_resid_mid") for failure in report.failures)


@pytest.mark.slow
def test_a_dead_point_that_is_not_declared_fails_clause_4(describe: Callable[..., None]) -> None:
    describe("FluxTransformer2DModel", text_ends_in_last_block=False)
    report = inspect("flux", points=None)
    assert 4 in report.failed
    undeclared = [failure.where for failure in report.failures if failure.clause == 4]
    assert "blocks.3.txt.hook_resid_post" in undeclared
    assert "blocks.3.attn.hook_pattern[query=txt]" in undeclared


@pytest.mark.slow
def test_a_living_point_that_is_declared_dead_fails_clause_4(
    describe: Callable[..., None],
) -> None:
    def singles_first(path: str) -> tuple[int, ...]:
        return (int(not path.startswith("single_")),)

    describe("FluxTransformer2DModel", order=singles_first)
    report = inspect("flux", points="blocks.3.**")
    assert {4, 6} <= set(report.failed)
    assert "since these are declared dead" in str(report)


@pytest.mark.slow
def test_permuted_heads_fail_only_clauses_5_and_7(monkeypatch: pytest.MonkeyPatch) -> None:
    original = firing.run

    def permuted(tap: Any, given: Tensor, context: Any) -> tuple[Tensor, bool]:
        if "head" not in context.axes:
            return original(tap, given, context)
        axis = context.axis("head")
        after, changed = original(tap, given.roll(1, axis), context)
        return (after.roll(-1, axis), True) if changed else (given, False)

    monkeypatch.setattr(firing, "run", permuted)
    monkeypatch.setattr(attention_engine, "run", permuted)
    report = inspect("sd35_medium", points="blocks.0.**")
    assert report.failed == (5, 7)


@pytest.mark.slow
def test_a_z_with_permuted_heads_fails_clauses_3_and_5(monkeypatch: pytest.MonkeyPatch) -> None:
    original = readers.on_columns

    def permuted(module: Any, rows: Any, columns: Any, heads: Any, fire: Any) -> Any:
        if heads is None:
            return original(module, rows, columns, heads, fire)

        def shown(value: Tensor) -> Tensor:
            flipped = value.flip(2)
            after = fire(flipped)
            return value if after is flipped else after.flip(2)

        return original(module, rows, columns, heads, shown)

    monkeypatch.setattr(readers, "on_columns", permuted)
    report = inspect("flux")
    assert {3, 5} <= set(report.failed)
    assert {1, 2, 4}.isdisjoint(report.failed)


@pytest.mark.slow
def test_a_reading_hook_that_changes_the_value_fails_clause_1(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = readers.fire

    def rounding(taps: Any, value: Tensor, *rest: Any, **more: Any) -> Tensor:
        after = original(taps, value, *rest, **more)
        return after * (1 + 1e-6) if taps[0].point.name == "blocks.1.img.hook_resid_pre" else after

    monkeypatch.setattr(readers, "fire", rounding)
    report = inspect("sd3", points="blocks.0.img.*")
    assert 1 in report.failed
    (first, *_) = report.failures
    assert first.where == "blocks.1.img.hook_resid_pre"


@pytest.mark.slow
def test_a_point_that_fires_twice_fails_clause_2(monkeypatch: pytest.MonkeyPatch) -> None:
    original = readers.fire

    def twice(taps: Any, *rest: Any, **more: Any) -> Tensor:
        if taps[0].point.name == "blocks.1.txt.hook_mlp_out":
            original(taps, *rest, **more)
        return original(taps, *rest, **more)

    monkeypatch.setattr(readers, "fire", twice)
    report = inspect("sd3")
    assert report.failed == (2,)
    assert {failure.where for failure in report.failures} == {"blocks.1.txt.hook_mlp_out"}
    assert {failure.found for failure in report.failures} == {"2"}


@pytest.mark.slow
def test_exchanged_branches_fail_clause_2(monkeypatch: pytest.MonkeyPatch) -> None:
    original = StepTracker.branch_rows

    def exchanged(self: StepTracker, *rest: Any) -> Any:
        rows = original(self, *rest)
        names = [name for name, _ in rows][::-1]
        return tuple((name, at) for name, (_, at) in zip(names, rows, strict=True))

    monkeypatch.setattr(StepTracker, "branch_rows", exchanged)
    assert inspect("sd3", points="blocks.0.attn.**").failed == (2,)


@pytest.mark.slow
def test_unseen_edits_in_place_fail_clause_4(monkeypatch: pytest.MonkeyPatch) -> None:
    def returned_only(tap: Any, given: Tensor, context: Any) -> tuple[Tensor, bool]:
        before = given.clone()
        after = firing.call(tap, given, context)
        return (before, False) if after is given else (after, True)

    monkeypatch.setattr(firing, "run", returned_only)
    monkeypatch.setattr(attention_engine, "run", returned_only)
    report = inspect("sd3")
    assert 4 in report.failed
    assert "whether the edit is returned or made in place" in str(report)


def test_an_error_on_the_way_is_a_failure_of_its_clause(describe: Callable[..., None]) -> None:
    def missing(spec: BlockSpec) -> BlockSpec:
        mlp = replace(spec.mlps["img"], gate=Gate("norm1", 99))
        return replace(spec, mlps={**spec.mlps, "img": mlp})

    describe("SD3Transformer2DModel", block="JointTransformerBlock", change=missing)
    report = inspect("sd3", points="blocks.0.img.*")
    assert 6 in report.failed
    assert "updates_add_up: expected a run; found IndexError" in str(report)


def test_a_module_that_does_not_exist_is_refused_at_once(describe: Callable[..., None]) -> None:
    def missing(spec: BlockSpec) -> BlockSpec:
        return replace(spec, mlps={"img": replace(spec.mlps["img"], down="ff.nowhere")})

    describe("UNet2DConditionModel", block="BasicTransformerBlock", change=missing)
    denoiser, inputs = tiny_denoiser("sd1")
    with pytest.raises(UnsupportedModelError, match=r"down: no module `ff\.nowhere`"):
        inspect_architecture(denoiser, inputs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "found"),
    [
        ("", "hook_q: expected nothing to move when only txt is disturbed"),
        ("time_extra_emb.timestep_embedder", "shape [2, 32], held still"),
        ("text_embedder", "shape [6, 20], moved"),
    ],
)
def test_text_that_is_pooled_somewhere_else_fails_clause_7(
    describe: Callable[..., None], module: str, found: str
) -> None:
    pooled = {"encoder_hidden_states_t5": module} if module else {}
    describe("HunyuanDiT2DModel", pooled=pooled)
    report = inspect("hunyuan_dit", points="blocks.1.attn.*.hook_v")
    assert any(found in str(one) for one in report.failures if one.clause == 7)


@pytest.mark.slow
def test_text_that_is_called_image_fails_clause_7_where_text_is_pooled(
    describe: Callable[..., None],
) -> None:
    def renamed(spec: BlockSpec) -> BlockSpec:
        itself, cross = spec.attentions
        return replace(spec, attentions=(itself, replace(cross, keys=("img",), context=None)))

    describe("HunyuanDiT2DModel", block="HunyuanDiTBlock", change=renamed)
    small: Any
    small, inputs = tiny_denoiser("hunyuan_dit")
    config = {key: one for key, one in small.config.items() if key[0] != "_"}
    denoiser = type(small)(**(config | {"text_len": 12, "text_len_t5": 12}))  # as many as the image
    draw_weights(denoiser, torch.Generator().manual_seed(0))
    masks = dict.fromkeys(["text_embedding_mask", "text_embedding_mask_t5"], torch.ones(2, 12))
    texts = {"encoder_hidden_states": torch.randn(2, 12, 20)}
    texts["encoder_hidden_states_t5"] = torch.randn(2, 12, 24)
    points = "blocks.1.cross_attn.*.hook_v"
    report = inspect_architecture(denoiser.eval(), inputs | masks | texts, points=points)
    failed = [str(one) for one in report.failures if one.clause == 7]
    assert any("cross_attn.img.hook_v: expected" in one for one in failed)
