"""Models that are not what their description says are refused by name, never read wrongly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPAGPipeline
from torch import Tensor, nn

from diffusion_lens import HookContext, HookedDiffusion, read_only
from diffusion_lens.engine.projection import same_length
from diffusion_lens.errors import EngineError
from diffusion_lens.testing import tiny_denoiser
from tests.pipelines import fresh_pipe, short


@read_only
def _look(_value: Tensor, _hook: HookContext) -> None:
    return None


def test_patterns_of_branches_that_are_computed_apart_are_refused() -> None:
    parts = fresh_pipe("sd").components
    pipe = StableDiffusionPAGPipeline(
        **parts, requires_safety_checker=False, pag_applied_layers=["mid"]
    )
    pipe.set_progress_bar_config(disable=True)
    settings = short("sd", steps=1, pag_scale=3.0)
    model = HookedDiffusion(pipe)
    branches = ("uncond", "cond", "perturbed")
    perturbed = next(
        point.block
        for point in model.points.values()
        if point.block is not None and point.module.startswith("mid_block")
    )
    shapes: dict[tuple[Any, str], int] = {}

    def look(value: Tensor, hook: HookContext) -> None:
        shapes[hook.block, hook.branch] = len(value)

    for name in ("hook_pattern", "hook_attn_scores", "img.hook_v"):
        with (
            pytest.raises(EngineError, match="its branches cannot be told apart"),
            model.hooks([(f"blocks.{perturbed}.attn.{name}", look)], branches=branches),
        ):
            pipe(**settings)
    assert not shapes
    others = [(f"blocks.{block}.attn.hook_pattern", look) for block in (0, perturbed + 1)]
    with model.hooks(others, branches=branches):
        pipe(**settings)
    assert {branch for _, branch in shapes} == set(branches) and min(shapes.values()) > 0


def _merging(unet: Any) -> str:
    """Let a block's self-attention work on every second token, as token merging does."""
    path = next(name for name, _ in unet.named_modules() if name.endswith("attn1"))
    attention = unet.get_submodule(path)
    original = attention.forward

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        merged = original(hidden_states[:, ::2].contiguous(), *args, **kwargs)
        return merged.repeat_interleave(2, 1)

    attention.forward = forward
    return path


@torch.no_grad()
def test_token_counts_that_change_inside_a_block_are_refused() -> None:
    unet, inputs = tiny_denoiser("sd1")
    model = HookedDiffusion(unet)
    _merging(unet)
    for name in ("img.hook_q", "hook_pattern", "hook_attn_scores", "img.hook_z", "img.hook_result"):
        with (
            pytest.raises(EngineError, match=r"merges or adds tokens on the way \(tomesd does\)"),
            model.hooks([(f"blocks.0.attn.{name}", lambda value, hook: value * 0.5)]),
        ):
            unet(**inputs)
    with model.hooks([("blocks.0.img.hook_resid_post", _look)]):
        unet(**inputs)


def test_token_counts_of_other_streams_are_none_of_a_streams_business() -> None:
    same_length("img", 16, {"img": 16, "txt": 7})
    same_length("ip", 4, {"img": 16})
    with pytest.raises(EngineError, match="got 16 tokens of stream 'img', and 8 arrive"):
        same_length("img", 8, {"img": 16})


class _Int8(Tensor):
    """A weight that knows how to be multiplied with and nothing else, as torchao's are."""

    @staticmethod
    def __new__(cls, whole: Tensor) -> _Int8:
        made = Tensor._make_wrapper_subclass(cls, whole.shape, dtype=whole.dtype)  # type: ignore[attr-defined]
        made.scale = whole.abs().amax(1, keepdim=True) / 127
        made.numbers = (whole / made.scale).round().to(torch.int8)
        return made

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is nn.functional.linear:
            given, weight, *rest = args
            return func(given, weight.numbers.float() * weight.scale, *rest, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(f"{func} of an int8 weight")


def _quantised(module: nn.Module) -> tuple[nn.Module, int]:
    count = 0
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            quantised = _Int8(layer.weight.detach())
            layer.weight = nn.Parameter(quantised, requires_grad=False)
            count += 1
    return module, count


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "points"),
    [
        ("sd1", ("blocks.0.attn.img.hook_result",)),
        (
            "flux",
            tuple(
                f"blocks.{block}.{name}"
                for block, name in (
                    (0, "attn.img.hook_result"),
                    (2, "attn.img.hook_result"),
                    (2, "img.hook_attn_out"),
                    (2, "img.hook_mlp_update"),
                )
            ),
        ),
    ],
)
def test_weights_that_are_subclasses_of_tensors_are_not_cut(
    family: str, points: tuple[str, ...]
) -> None:
    whole, inputs = tiny_denoiser(family)
    for layer in whole.modules():  # weights that int8 holds exactly
        if isinstance(layer, nn.Linear):
            scale = layer.weight.abs().amax(1, keepdim=True) / 127
            layer.weight.copy_((layer.weight / scale).round() * scale)
    model = HookedDiffusion(whole)
    with model.caching(points) as expected:
        plain = whole(**inputs)[0]
    module, count = _quantised(whole)
    assert count > 10 and type(next(iter(module.parameters()))) in (_Int8, nn.Parameter)
    with model.caching(points) as cache:
        torch.testing.assert_close(whole(**inputs)[0], plain, atol=1e-4, rtol=1e-4)
    for point in points:
        mine, theirs = cache.at(step=0)[point], expected.at(step=0)[point]
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    hooks = [(point, lambda value, hook: value * 0.5) for point in points]
    with model.hooks(hooks):
        assert not torch.allclose(whole(**inputs)[0], plain, atol=1e-3)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_is_refused_until_another_backend_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from diffusers.models import attention_dispatch as dispatch

    backends = dispatch._AttentionBackendRegistry
    monkeypatch.setattr(backends, "_active_backend", backends._active_backend)  # put back after
    transformer: Any
    transformer, inputs = tiny_denoiser("flux")
    transformer.set_attention_backend("flex")
    model = HookedDiffusion(transformer)
    with torch.no_grad():
        for point in ("attn.hook_pattern", "attn.img.hook_q"):
            with (
                pytest.raises(
                    EngineError, match=r"backend 'flex'.*`set_attention_backend\('native'\)`"
                ),
                model.hooks([(f"**.{point}", _look)]),
            ):
                transformer(**inputs)
        plain = transformer(**inputs)[0]
        with model.hooks([("blocks.0.img.hook_resid_post", _look), ("**.hook_z", _look)]):
            assert torch.equal(transformer(**inputs)[0], plain)
        transformer.set_attention_backend("native")
        plain = transformer(**inputs)[0]
        with model.hooks([("**.hook_pattern", _look)]):
            assert torch.equal(transformer(**inputs)[0], plain)


@pytest.mark.parametrize("backend", ["_native_math", "native"])
def test_backends_of_torchs_own_kernels_stay_and_keep_the_bits(backend: str) -> None:
    from diffusers.models import attention_dispatch as dispatch

    transformer: Any
    transformer, inputs = tiny_denoiser("flux")
    chosen = dispatch.AttentionBackendName(backend)
    for module in transformer.modules():
        if hasattr(module, "processor"):
            module.processor._attention_backend = chosen
    model = HookedDiffusion(transformer)
    names = ("**.hook_pattern", "**.hook_attn_scores", "**.attn.img.hook_q")
    with torch.no_grad():
        plain = transformer(**inputs)[0]
        with model.hooks([(name, _look) for name in names]):
            assert torch.equal(transformer(**inputs)[0], plain)
        with model.hooks([(name, lambda value, hook: value.clone()) for name in names]):
            assert torch.equal(transformer(**inputs)[0], plain)
