"""Attention that is worked out in steps shows and takes the numbers of the fused product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    CustomDiffusionAttnProcessor,
    IPAdapterAttnProcessor,
    IPAdapterAttnProcessor2_0,
)
from torch import Tensor, nn

from diffusion_lens import HookContext, HookedDiffusion, Site
from diffusion_lens.testing import check_architecture, tiny_denoiser
from tests.pipelines import fresh_pipe, latents_of, short

POINTS = tuple(
    f"blocks.{block}.{name}"
    for block in (0, 1)
    for name in (
        "attn.img.hook_q",
        "attn.img.hook_k",
        "attn.img.hook_v",
        "attn.hook_attn_scores",
        "attn.hook_pattern",
        "attn.img.hook_z",
        "attn.img.hook_result",
        "cross_attn.txt.hook_k",
        "cross_attn.txt.hook_v",
        "cross_attn.hook_attn_scores",
        "cross_attn.hook_pattern",
    )
)


def _unet(kind: type, **more: Any) -> tuple[Any, Callable[..., Tensor]]:
    """A tiny U-Net whose cross-attention has a processor of a kind, and a call of it."""
    torch.manual_seed(0)
    unet: Any
    unet, inputs = tiny_denoiser("sd1")
    width = unet.config.cross_attention_dim
    prompts = "IPAdapter" in kind.__name__

    def made(name: str) -> nn.Module | Any:
        module = unet.get_submodule(name.removesuffix(".processor"))
        if prompts:
            return kind(module.query_dim, width, num_tokens=(4,), scale=0.5)
        return kind(**more)

    plain = AttnProcessor if not kind.__name__.endswith("2_0") else None
    processors = {
        name: made(name) if "attn2" in name or not prompts else (plain or type(before))()
        for name, before in unet.attn_processors.items()
    }
    unet.set_attn_processor(processors)
    text = inputs.pop("encoder_hidden_states")
    images = torch.randn(len(text), 1, 4, width, generator=torch.Generator().manual_seed(1))

    @torch.no_grad()
    def call() -> Tensor:
        given = (text, [images]) if prompts else text
        return unet(**inputs, encoder_hidden_states=given, return_dict=False)[0]

    return unet, call


def _seen(model: HookedDiffusion, call: Callable[[], Tensor], names: Any) -> dict[str, Tensor]:
    with model.caching(names) as cache:
        call()
    at = cache.at(step=0)
    return {name: at[name] for name in at}


def _same(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        close = 1e-6 if name.startswith("blocks.0.attn") else 2e-5  # rounding grows on the way
        size = float(theirs[name].abs().max())
        torch.testing.assert_close(value / size, theirs[name] / size, atol=close, rtol=0, msg=name)


@pytest.mark.parametrize("kind", [AttnProcessor, CustomDiffusionAttnProcessor])
def test_values_are_those_of_the_fused_product_and_the_output_is_untouched(kind: type) -> None:
    options = {} if kind is AttnProcessor else {"train_kv": False, "train_q_out": False}
    unet, call = _unet(kind, **options)
    model, plain = HookedDiffusion(unet), call()
    mine = _seen(model, call, POINTS)
    with model.hooks([(name, lambda value, hook: None) for name in POINTS]):
        assert torch.equal(call(), plain)
    with model.hooks([(name, lambda value, hook: value.clone()) for name in POINTS]):
        assert torch.equal(call(), plain)
    unet.set_attn_processor(AttnProcessor2_0())
    _same(mine, _seen(model, call, POINTS))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in POINTS if name.startswith("blocks.1")])
def test_edits_are_those_of_the_fused_product(name: str) -> None:
    def edit(value: Tensor, _hook: HookContext) -> Tensor:
        return value * 0.5 + 0.01

    unet, call = _unet(AttnProcessor)
    model, plain = HookedDiffusion(unet), call()
    where: Any = name
    if "hook_pattern" in name:
        where = Site(name, heads=[0, 2], key=[0, 3, 5], branch="cond")
    with model.hooks([(where, edit)]):
        mine = call()
    unet.set_attn_processor(AttnProcessor2_0())
    with model.hooks([(where, edit)]):
        theirs = call()
    assert not torch.allclose(mine, plain, atol=1e-4)
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_an_image_prompt_is_a_product_of_its_own_and_asked_by_the_same_queries() -> None:
    names = (*POINTS, "blocks.*.cross_attn.ip.*")

    def edit(value: Tensor, _hook: HookContext) -> Tensor:
        return value * 0.5

    seen, edited = [], []
    for kind in (IPAdapterAttnProcessor, IPAdapterAttnProcessor2_0):
        unet, call = _unet(kind)
        model = HookedDiffusion(unet)
        seen.append(_seen(model, call, names))
        with model.hooks([("blocks.0.cross_attn.img.hook_q", edit)]):
            edited.append(_seen(model, call, names))
    assert "blocks.0.cross_attn.ip.hook_pattern" in seen[0]
    _same(*seen)
    _same(*edited)
    for name in ("blocks.0.cross_attn.hook_pattern", "blocks.0.cross_attn.ip.hook_pattern"):
        assert not torch.allclose(seen[0][name], edited[0][name], atol=1e-3)


@pytest.mark.slow
def test_a_unet_with_explicit_products_keeps_the_contract() -> None:
    unet: Any
    unet, inputs = tiny_denoiser("sd1")
    unet.set_default_attn_processor()
    check_architecture(unet, inputs, points=["blocks.0.attn.**", "blocks.0.cross_attn.**"])


def test_half_precision_patterns_are_shown_in_single_precision_and_go_back_as_they_were() -> None:
    unet: Any
    unet, inputs = tiny_denoiser("sd2", dtype=torch.bfloat16)
    unet.set_attn_processor(AttnProcessor())
    assert unet.config.upcast_attention
    model, shown = HookedDiffusion(unet), []

    def keep(value: Tensor, _hook: HookContext) -> Tensor:
        shown.append(value.dtype)
        return value.clone()

    with torch.no_grad():
        plain = unet(**inputs).sample
        with model.hooks([(name, keep) for name in POINTS if "scores" in name or "patt" in name]):
            assert torch.equal(unet(**inputs).sample, plain)
    assert set(shown) == {torch.float32}


def test_a_run_of_the_pipeline_is_untouched_and_its_rows_sum_to_one() -> None:
    pipe = fresh_pipe("sd")
    pipe.unet.set_attn_processor(AttnProcessor())
    settings = short("sd")
    model = HookedDiffusion(pipe)
    plain = latents_of(model(**settings))
    shown: dict[str, int] = {}

    def look(pattern: Tensor, hook: HookContext) -> None:
        torch.testing.assert_close(pattern.sum(-1), torch.ones_like(pattern[..., 0]))
        shown[hook.branch] = shown.get(hook.branch, 0) + len(pattern)

    out = model.run_with_hooks(fwd_hooks=[("**.hook_pattern", look)], **settings)
    assert torch.equal(latents_of(out), plain)
    assert shown["cond"] == shown["uncond"] > 0


def test_gradients_reach_an_explicit_pattern() -> None:
    unet: Any
    unet, inputs = tiny_denoiser("sd1")
    unet.set_attn_processor(AttnProcessor())
    model, kept = HookedDiffusion(unet), []
    with model.hooks([("blocks.0.cross_attn.hook_pattern", lambda p, _hook: kept.append(p))]):
        inputs["sample"].requires_grad_(True)
        unet(**inputs).sample.square().mean().backward(inputs=[inputs["sample"], *kept])
    assert all(float(one.grad.abs().max()) > 0 for one in kept)
