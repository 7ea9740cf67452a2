from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from torch import Tensor

from diffusion_lens import HookedDiffusion, read_only
from diffusion_lens.errors import EngineError, HookNeverFiredError
from diffusion_lens.testing import tiny_denoiser

SCALE = 0.5


@torch.no_grad()
def test_an_image_prompt_is_a_product_of_its_own_in_a_unet() -> None:
    denoiser, inputs = tiny_denoiser("sd1")
    unet: Any = denoiser
    torch.manual_seed(0)
    text_width = unet.config.cross_attention_dim
    processors = {
        name: IPAdapterAttnProcessor2_0(
            unet.get_submodule(name.removesuffix(".processor")).query_dim,
            text_width,
            num_tokens=(4,),
            scale=SCALE,
        )
        if "attn2" in name
        else processor
        for name, processor in unet.attn_processors.items()
    }
    unet.set_attn_processor(processors)
    text = inputs.pop("encoder_hidden_states")
    images = torch.randn(len(text), 1, 4, text_width)

    def call() -> Tensor:
        return unet(**inputs, encoder_hidden_states=(text, [images]), return_dict=False)[0]

    plain = call()
    model = HookedDiffusion(unet)
    with model.caching("blocks.0.cross_attn.**") as cache:
        assert torch.equal(call(), plain)
    at = cache.at(step=0)
    pattern = at["blocks.0.cross_attn.ip.hook_pattern"]
    torch.testing.assert_close(pattern.sum(-1), torch.ones_like(pattern[..., 0]))
    products = [
        torch.einsum("bhqk,bkhd->bqhd", at[f"blocks.0.cross_attn.{key}"], at[f"blocks.0.{value}"])
        for key, value in (
            ("hook_pattern", "cross_attn.txt.hook_v"),
            ("ip.hook_pattern", "cross_attn.ip.hook_v"),
        )
    ]
    z = at["blocks.0.cross_attn.img.hook_z"]
    torch.testing.assert_close(products[0] + SCALE * products[1], z, atol=1e-5, rtol=1e-5)
    hooks = [("blocks.0.cross_attn.ip.hook_pattern", lambda p, _hook: p * 0)]
    with model.hooks(hooks), model.caching("blocks.0.cross_attn.img.hook_z") as ablated:
        assert not torch.equal(call(), plain)
    torch.testing.assert_close(
        ablated.at(step=0)["blocks.0.cross_attn.img.hook_z"], products[0], atol=1e-5, rtol=1e-5
    )


@torch.no_grad()
def test_a_second_image_prompt_keeps_its_name_where_the_first_is_off() -> None:
    denoiser, inputs = tiny_denoiser("sd1")
    unet: Any = denoiser
    torch.manual_seed(0)
    width = unet.config.cross_attention_dim
    scales: Any = [0.0, 0.7]
    processors = {
        name: IPAdapterAttnProcessor2_0(
            unet.get_submodule(name.removesuffix(".processor")).query_dim,
            width,
            num_tokens=(4, 3),
            scale=scales,
        )
        if "attn2" in name
        else processor
        for name, processor in unet.attn_processors.items()
    }
    unet.set_attn_processor(processors)
    text = inputs.pop("encoder_hidden_states")
    images = [torch.randn(len(text), 1, tokens, width) for tokens in (4, 3)]

    def call() -> Tensor:
        return unet(**inputs, encoder_hidden_states=(text, images), return_dict=False)[0]

    plain = call()
    model = HookedDiffusion(unet)
    attn = "blocks.0.cross_attn"
    parts = ("hook_pattern", "ip2.hook_pattern", "txt.hook_v", "ip2.hook_v", "img.hook_z")
    names = [f"{attn}.{part}" for part in (*parts, "img.hook_q", "hook_context")]
    with model.caching(names) as cache:
        assert torch.equal(call(), plain)
    at = cache.at(step=0)
    assert torch.equal(at[f"{attn}.hook_context"], text)
    assert at[f"{attn}.ip2.hook_pattern"].shape[-1] == 3

    def products(cached: Any) -> list[Tensor]:
        pairs = (("hook_pattern", "txt.hook_v"), ("ip2.hook_pattern", "ip2.hook_v"))
        return [
            torch.einsum("bhqk,bkhd->bqhd", cached[f"{attn}.{one}"], cached[f"{attn}.{other}"])
            for one, other in pairs
        ]

    first, second = products(at)
    torch.testing.assert_close(first + 0.7 * second, at[f"{attn}.img.hook_z"], atol=1e-5, rtol=1e-5)
    # An edit of the queries reaches the text's product and the image prompt's.
    with (
        model.hooks([(f"{attn}.img.hook_q", lambda q, _hook: q * 0)]),
        model.caching(names) as cache,
    ):
        assert not torch.equal(call(), plain)
    edited = cache.at(step=0)
    for name, length in (("hook_pattern", text.shape[1]), ("ip2.hook_pattern", 3)):
        uniform = torch.full_like(edited[f"{attn}.{name}"], 1 / length)
        torch.testing.assert_close(edited[f"{attn}.{name}"], uniform)
    first, second = products(edited)
    z = edited[f"{attn}.img.hook_z"]
    torch.testing.assert_close(first + 0.7 * second, z, atol=1e-5, rtol=1e-5)
    with model.hooks([(f"{attn}.hook_context", lambda context, _hook: context * 0)]):
        assert not torch.equal(call(), plain)


@torch.no_grad()
def test_an_image_prompt_is_a_product_of_its_own_in_flux() -> None:
    denoiser, inputs = tiny_denoiser("flux")
    flux: Any = denoiser
    torch.manual_seed(0)
    width = flux.inner_dim
    text_width = flux.config.joint_attention_dim
    flux.set_attn_processor(
        {
            name: FluxIPAdapterAttnProcessor(width, text_width, num_tokens=(4,), scale=SCALE)
            if name.startswith("transformer_blocks")
            else processor
            for name, processor in flux.attn_processors.items()
        }
    )
    batch = len(inputs["hidden_states"])
    images = [torch.randn(batch, 4, text_width)]

    def call() -> Tensor:
        more = {"joint_attention_kwargs": {"ip_hidden_states": images}}
        return flux(**inputs, **more, return_dict=False)[0]

    plain = call()
    model = HookedDiffusion(flux)
    names = ["blocks.0.**", "blocks.1.img.hook_resid_pre"]
    with model.caching(names) as cache:
        assert torch.equal(call(), plain)
    pattern = cache.at(step=0)["blocks.0.attn.ip.hook_pattern"]
    torch.testing.assert_close(pattern.sum(-1), torch.ones_like(pattern[..., 0]))
    assert "blocks.2.attn.ip.hook_pattern" not in model.points
    own = [(name, lambda value, _hook: value * 1) for name in ("blocks.0.img.hook_mlp_update",)]
    with model.hooks(own):
        torch.testing.assert_close(call(), plain, atol=1e-6, rtol=1e-6)


def _prompted(scale: Any) -> tuple[Any, dict[str, Any]]:
    """A U-Net with one image prompt of two images, and a call of it."""
    torch.manual_seed(0)
    unet: Any
    unet, inputs = tiny_denoiser("sd1")
    width = unet.config.cross_attention_dim
    unet.set_attn_processor(
        {
            name: IPAdapterAttnProcessor2_0(
                unet.get_submodule(name.removesuffix(".processor")).query_dim,
                width,
                num_tokens=(4,),
                scale=scale,
            )
            if "attn2" in name
            else processor
            for name, processor in unet.attn_processors.items()
        }
    )
    text = inputs["encoder_hidden_states"]
    return unet, inputs | {"encoder_hidden_states": (text, [torch.randn(len(text), 2, 4, width)])}


@read_only
def _look(_value: Tensor, _hook: Any) -> None:
    return None


@pytest.mark.slow
@torch.no_grad()
def test_an_image_prompt_of_scale_zero_is_absent_and_says_so_where_it_is_named() -> None:
    unet, inputs = _prompted(0.5)
    inputs["encoder_hidden_states"][1][0] = inputs["encoder_hidden_states"][1][0][:, :1]
    model = HookedDiffusion(unet)
    prompted = [
        p for p in unet.attn_processors.values() if isinstance(p, IPAdapterAttnProcessor2_0)
    ]
    for off in (0.0, [0.0]):  # a list has one scale for each image
        prompted[0].scale = [off]  # type: ignore[assignment]
        for pattern in ("**", "blocks.*.cross_attn.ip.hook_pattern"):
            with model.hooks([(pattern, _look)]):
                unet(**inputs)
        with (
            pytest.raises(HookNeverFiredError, match="the scale of its image prompt is 0 there"),
            model.hooks([("blocks.0.cross_attn.ip.hook_k", _look)]),
        ):
            unet(**inputs)
    seen: list[str] = []
    with model.hooks([("blocks.*.cross_attn.ip.*", lambda _v, hook: seen.append(hook.name))]):
        unet(**inputs)
    assert seen and not any(name.startswith("blocks.0.") for name in seen)
    for processor in prompted:
        processor.scale = [0.0]  # type: ignore[assignment]
    with model.hooks([("**", _look)]):
        unet(**inputs)


@torch.no_grad()
def test_a_product_for_each_image_of_a_masked_prompt_is_refused() -> None:
    unet, inputs = _prompted([[0.5, 0.5]])
    masks = {"ip_adapter_masks": [torch.ones(1, 2, 8, 8)]}
    unet(**inputs, cross_attention_kwargs=masks)
    model = HookedDiffusion(unet)
    with (
        pytest.raises(EngineError, match="with ip_adapter_masks each image has one of its own"),
        model.hooks([("blocks.0.cross_attn.hook_pattern", _look)]),
    ):
        unet(**inputs, cross_attention_kwargs=masks)
    with model.hooks([("blocks.0.cross_attn.img.hook_z", _look)]):
        unet(**inputs, cross_attention_kwargs=masks)
