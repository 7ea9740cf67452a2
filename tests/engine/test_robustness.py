"""Hooks on models that run in unusual ways."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lens import HookContext, HookedDiffusion, Site
from diffusion_lens.errors import EngineError
from diffusion_lens.testing import tiny_denoiser
from tests.pipelines import (
    FAMILIES,
    branches_of,
    evaluate,
    evaluation_of,
    fresh_pipe,
    kinds_of,
    latents_of,
    shared_pipe,
    short,
    traces,
)

EDITED = ("blocks.1.attn.hook_pattern", "blocks.1.attn.img.hook_z", "blocks.1.img.hook_resid_mid")


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    evaluation_of(request.param)
    return request.param


def denoiser_of(pipe: Any) -> Any:
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def nothing(_activation: Tensor, _hook: HookContext) -> None:
    return None


def halve_in_place(activation: Tensor, _hook: HookContext) -> None:
    activation *= 0.5


def halve(activation: Tensor, _hook: HookContext) -> Tensor:
    return activation * 0.5


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd", "flux"], indirect=True)
def test_compiled_denoisers_run_their_hooks(family: str) -> None:
    torch._dynamo.reset()
    pipe = fresh_pipe(family)
    settings = short(family, steps=1)
    model = HookedDiffusion(pipe)
    expected = latents_of(model.run_with_hooks(fwd_hooks=[(EDITED[1], halve)], **settings))
    plain = latents_of(model(**settings))
    name = "unet" if hasattr(pipe, "unet") else "transformer"
    setattr(pipe, name, torch.compile(getattr(pipe, name), backend="eager"))
    compiled = HookedDiffusion(pipe)
    torch.testing.assert_close(latents_of(compiled(**settings)), plain)
    seen: list[str] = []
    hooks: Any = [(EDITED[1], halve), (EDITED[0], lambda _p, hook: seen.append(hook.name))]
    out = compiled.run_with_hooks(fwd_hooks=hooks, **settings)
    assert seen and torch.equal(latents_of(out), expected)
    torch.testing.assert_close(latents_of(compiled(**settings)), plain)
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")
def test_reads_under_autocast_leave_the_bits(family: str) -> None:
    model = HookedDiffusion(denoiser_of(shared_pipe(family)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = evaluate(model, family)
        assert torch.equal(evaluate(model, family, ("**", nothing)), plain)
        edited = evaluate(model, family, (EDITED[0], halve))
    assert not torch.equal(edited, plain) and edited.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd", "sd35", "flux"], indirect=True)
def test_edits_count_in_inference_mode(family: str) -> None:
    model = HookedDiffusion(denoiser_of(shared_pipe(family)))
    plain = evaluate(model, family)
    for name in kinds_of(model):
        if name.startswith("blocks"):
            expected = evaluate(model, family, (name, halve))
            with torch.inference_mode():
                found = evaluate(model, family, (name, halve_in_place))
            assert torch.equal(found, expected) and not torch.equal(found, plain), name
    with torch.inference_mode():
        assert torch.equal(evaluate(model, family, ("**", nothing)), plain)
        with model.caching("**", branch="all", branches=branches_of(family)) as cache:
            model.denoiser(**evaluation_of(family))
    assert len(cache) == len(model.points)


def test_hooks_work_inside_a_device_context(family: str) -> None:
    model = HookedDiffusion(denoiser_of(shared_pipe(family)))
    plain = evaluate(model, family)
    with torch.device("cpu"):
        assert torch.equal(evaluate(model, family, ("**.hook_pattern", nothing)), plain)


def test_other_attention_backends_are_switched_while_hooked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from diffusers.models import attention_dispatch as dispatch

    calls = []

    def fake(query: Tensor, key: Tensor, value: Tensor, scale: Any = None) -> Tensor:
        calls.append(1)
        q, k, v = (tensor.transpose(1, 2) for tensor in (query, key, value))
        return (torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1) @ v).transpose(1, 2)

    flash, backends = dispatch.AttentionBackendName.FLASH, dispatch._AttentionBackendRegistry
    monkeypatch.setitem(backends._backends, flash, fake)
    monkeypatch.setitem(backends._supported_arg_names, flash, {"query", "key", "value", "scale"})
    transformer = fresh_pipe("flux").transformer
    evaluation_of("flux")
    for module in transformer.modules():
        if hasattr(module, "processor"):
            module.processor._attention_backend = flash
    model, before = HookedDiffusion(transformer), traces(transformer)
    plain = evaluate(model, "flux")
    used = len(calls)
    assert used == model.n_blocks
    seen: list[str] = []
    hook: Any = ("blocks.1.attn.hook_pattern", lambda _p, hook: seen.append(hook.name))
    torch.testing.assert_close(evaluate(model, "flux", hook), plain, atol=1e-4, rtol=1e-4)
    assert seen and len(calls) == 2 * used - 1
    assert traces(transformer) == before
    assert torch.equal(evaluate(model, "flux", ("**.hook_z", nothing)), plain)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd", "sd3", "flux"], indirect=True)
def test_fused_projections_show_the_same_points(family: str) -> None:
    denoiser = denoiser_of(fresh_pipe(family))
    model = HookedDiffusion(denoiser)

    def read() -> Any:
        with torch.no_grad(), model.caching("blocks.1.**", branches=branches_of(family)) as cache:
            model.denoiser(**evaluation_of(family))
        return cache

    apart = read()
    denoiser.fuse_qkv_projections()
    together = read()
    assert set(apart.keys()) == set(together.keys())
    for name, value in apart.items():
        torch.testing.assert_close(together[name], value, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd", "flux"], indirect=True)
def test_adapters_loaded_after_wrapping_are_seen(family: str) -> None:
    peft = pytest.importorskip("peft")
    denoiser = denoiser_of(fresh_pipe(family))
    model = HookedDiffusion(denoiser)
    without = evaluate(model, family)
    config = peft.LoraConfig(r=2, target_modules=["to_q", "to_out.0"], init_lora_weights=False)
    denoiser.add_adapter(config)
    plain = evaluate(model, family)
    assert not torch.equal(plain, without)
    assert torch.equal(evaluate(model, family, ("**", nothing)), plain)
    names = ["blocks.1.attn.img.hook_result", "blocks.1.img.hook_attn_out"]
    with torch.no_grad(), model.caching(names, branches=branches_of(family)) as cache:
        model.denoiser(**evaluation_of(family))
    block = model.points[names[0]].source.block  # type: ignore[attr-defined]
    out = denoiser.get_submodule(block.inside("attn1" if family == "sd" else "attn")).to_out[0]
    bias = out.base_layer.bias
    torch.testing.assert_close(
        cache[names[0]].sum(-2) + bias, cache[names[1]], atol=1e-4, rtol=1e-4
    )


@pytest.mark.slow
def test_group_offloading_and_layerwise_casting_compose() -> None:
    from diffusers.hooks import apply_group_offloading

    evaluation_of("flux")
    plain = evaluate(HookedDiffusion(shared_pipe("flux").transformer), "flux")
    offloaded = fresh_pipe("flux").transformer
    cpu = torch.device("cpu")
    apply_group_offloading(
        offloaded, onload_device=cpu, offload_device=cpu, offload_type="leaf_level"
    )
    assert torch.equal(evaluate(HookedDiffusion(offloaded), "flux", ("**", nothing)), plain)
    cast = fresh_pipe("flux").transformer
    cast.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    model = HookedDiffusion(cast)
    assert torch.equal(evaluate(model, "flux", ("**", nothing)), evaluate(model, "flux"))


def test_weights_offloaded_between_calls_are_found() -> None:
    import accelerate

    evaluation_of("flux")
    plain = evaluate(HookedDiffusion(shared_pipe("flux").transformer), "flux")
    transformer = fresh_pipe("flux").transformer
    accelerate.cpu_offload(transformer, execution_device=torch.device("cpu"))
    model = HookedDiffusion(transformer)
    assert torch.equal(evaluate(model, "flux", ("**", nothing)), plain)


def test_threads_do_not_see_each_others_hooks() -> None:
    evaluation_of("sd3")
    plain = evaluate(HookedDiffusion(shared_pipe("sd3").transformer), "sd3")
    models = [HookedDiffusion(fresh_pipe("sd3").transformer) for _ in range(2)]
    found: dict[int, list[Tensor]] = {0: [], 1: []}

    def work(number: int) -> None:
        torch.set_grad_enabled(False)
        hooks = [(EDITED[0], halve)] if number else []
        for _ in range(8):
            found[number].append(evaluate(models[number], "sd3", *hooks))

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found[0]) == len(found[1]) == 8
    assert all(torch.equal(one, plain) for one in found[0])
    assert not any(torch.equal(one, plain) for one in found[1])


def test_ctrl_c_inside_a_context_does_not_spoil_the_next_run(family: str) -> None:
    model, armed = HookedDiffusion(shared_pipe(family)), [True]

    def interrupt(_activation: Tensor, _hook: HookContext) -> None:
        if armed[0]:
            armed[0] = False
            raise KeyboardInterrupt

    settings = short(family, steps=1)
    plain = latents_of(model(**settings))
    with model.hooks([("blocks.0.attn.img.hook_q", interrupt)]):
        with pytest.raises(KeyboardInterrupt):
            model(**settings)
        assert torch.equal(latents_of(model(**settings)), plain)


def test_processors_without_the_fused_product_keep_their_other_points() -> None:
    unet = fresh_pipe("sd").unet
    evaluation_of("sd")
    unet.set_attention_slice(1)
    model = HookedDiffusion(unet)
    with pytest.raises(EngineError, match="SlicedAttnProcessor computes attention in slices"):
        evaluate(model, "sd", ("blocks.0.attn.hook_pattern", nothing))
    evaluate(model, "sd", ("blocks.0.attn.img.hook_z", nothing))


def test_tables_show_what_there_is_in_text_and_html() -> None:
    model = HookedDiffusion(shared_pipe("sd3"), name="<tiny>")
    table = model.hook_table("blocks.2.**")
    text, page = str(table), table._repr_html_()
    assert text.splitlines()[1].split()[:2] == ["hook", "point"] and repr(table) == text
    assert "absent: the last block drops its text stream" in text
    assert "dead: the model throws away" in text or "dead" not in text
    assert page.count("<tr>") == len(table) + 1 and len(list(table)) == len(table)
    rows = {row.name: row for row in table}
    z = rows["blocks.2.attn.img.hook_z"]
    assert z.shape == (1, 64, 4, 6) and z.nbytes == 64 * 24 * 4 and z.grid == (8, 8)
    out = model.run_with_hooks(fwd_hooks=[("blocks.0.attn.img.hook_z", Named())], **short("sd3"))
    assert "&lt;zero &amp; go&gt;" in out.report._repr_html_()
    assert "<zero & go>" in str(out.report) and repr(out.report) == str(out.report)
    assert str(model(**short("sd3")).report) == "no hooks"
    assert "<tiny>" in repr(model)


class Named:
    def __call__(self, z: Tensor, hook: HookContext) -> Tensor:
        return z * 0

    def __repr__(self) -> str:
        return "<zero & go>"


def logging_to(found: list[tuple[int, str]]) -> Any:
    return lambda _activation, hook: found.append((hook.step, hook.name))


def test_a_scheduler_put_in_after_a_hook_is_followed() -> None:
    from diffusers import DDIMScheduler, EulerDiscreteScheduler

    pipe, seen = fresh_pipe("sd"), []
    config = pipe.scheduler.config
    model, before = HookedDiffusion(pipe), traces(pipe)
    first = pipe.scheduler
    model.add_hook(Site("hook_latents", branch="cond"), logging_to(seen))
    model.add_hook("hook_guided_pred", logging_to(seen))
    names = ("hook_latents", "hook_guided_pred")
    for kind in (DDIMScheduler, EulerDiscreteScheduler):
        pipe.scheduler = kind.from_config(config)
        seen.clear()
        model(**short("sd", steps=3))
        assert seen == [(step, name) for step in range(3) for name in names]
    pipe.scheduler = DDIMScheduler.from_config(config)
    settings = short("sd", steps=3)
    latents = settings.pop("latents")
    del settings["output_type"]
    seen.clear()
    assert model.denoise(latents, step=1, **settings).step == 1
    assert seen == [(1, name) for name in names]
    model.reset_hooks()
    pipe.scheduler = first
    assert traces(pipe) == before


def test_a_denoiser_put_in_after_a_hook_is_hooked() -> None:
    pipe, other, seen = fresh_pipe("flux"), fresh_pipe("flux").transformer, []
    model, first = HookedDiffusion(pipe), pipe.transformer
    before = traces(first)
    model.add_hook("blocks.1.attn.img.hook_z", logging_to(seen))
    model(**short("flux"))
    plain = list(seen)
    pipe.transformer = other
    seen.clear()
    model(**short("flux"))
    assert seen == plain and traces(first)["torch hooks"] == before["torch hooks"]
    model.reset_hooks()
    assert traces(first) == traces(other) == before


def test_adapters_loaded_after_a_hook_are_seen() -> None:
    peft = pytest.importorskip("peft")
    pipe = fresh_pipe("flux")
    model, found = HookedDiffusion(pipe), {}
    names = ["blocks.1.attn.img.hook_result", "blocks.1.img.hook_attn_out"]
    for name in names:
        model.add_hook(name, lambda value, hook: found.update({hook.name: value.clone()}))
    model(**short("flux", steps=1))
    plain = dict(found)
    config = peft.LoraConfig(r=2, target_modules=["to_q", "to_out.0"], init_lora_weights=False)
    pipe.transformer.add_adapter(config)
    found.clear()
    model(**short("flux", steps=1))
    assert set(found) == set(names) and not torch.equal(found[names[0]], plain[names[0]])
    bias = pipe.transformer.transformer_blocks[1].attn.to_out[0].base_layer.bias
    torch.testing.assert_close(
        found[names[0]].sum(-2) + bias, found[names[1]], atol=1e-4, rtol=1e-4
    )
    model.reset_hooks()


def test_results_of_heads_change_the_attention_and_not_the_mlp_of_a_joint_projection() -> None:
    transformer = fresh_pipe("flux").transformer
    model = HookedDiffusion(transformer)
    block = model.n_blocks - 1
    evaluation_of("flux")
    assert model.points[f"blocks.{block}.img.hook_attn_out"].module.startswith("single_")
    outs = [f"blocks.{block}.img.hook_{name}" for name in ("attn_out", "mlp_out", "resid_post")]
    results = f"blocks.{block}.attn.img.hook_result"
    found: list[Any] = []
    for hooks in ([], [(Site(results, heads=[2]), lambda result, _hook: result * 0)]):
        with torch.no_grad(), model.hooks(hooks), model.caching([*outs, results]) as cache:
            model.denoiser(**evaluation_of("flux"))
        found.append(cache.at(step=0))
    plain, edited = found
    change = -plain[results][..., 2, :]
    torch.testing.assert_close(edited[outs[0]] - plain[outs[0]], change, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(edited[outs[1]], plain[outs[1]], atol=1e-5, rtol=1e-5)
    assert change.abs().max() > 1e-3
    assert (edited[outs[2]] - plain[outs[2]]).abs().max() > 1e-4


def test_edited_updates_keep_to_the_range_of_float16() -> None:
    """As the blocks of diffusers do for what they add up themselves."""
    denoiser, inputs = tiny_denoiser("flux")
    denoiser.half()
    halves = {
        name: value.half() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }
    seen: list[Tensor] = []

    def large(update: Tensor, _hook: HookContext) -> Tensor:
        return torch.full_like(update, 60_000)

    def keep(residual: Tensor, _hook: HookContext) -> None:
        seen.append(residual.clone())

    last = "blocks.0.txt.hook_resid_post"  # which the block clips; the image's it does not
    updates = ("blocks.0.txt.hook_attn_update", "blocks.0.txt.hook_mlp_update")
    with HookedDiffusion(denoiser).hooks([*((name, large) for name in updates), (last, keep)]):
        denoiser(**halves)
    assert torch.equal(seen[0], torch.full_like(seen[0], 65_504))
