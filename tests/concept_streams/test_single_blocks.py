"""Concepts go on through Flux's single blocks where these are named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lens import HookContext, HookedDiffusion, Site
from tests.pipelines import latents_of, shared_pipe, short

CONCEPTS = ["cat", "glass table"]


@pytest.fixture
def model() -> HookedDiffusion:
    return HookedDiffusion(shared_pipe("flux"))


@pytest.fixture
def singles(model: HookedDiffusion) -> range:
    """The numbers of the single blocks."""
    return range(len(model.denoiser.transformer_blocks), model.n_blocks)


def nothing(_activation: Tensor, _hook: HookContext) -> None:
    return None


def noise(activation: Tensor, _hook: HookContext) -> Tensor:
    return activation + 1


def cached(model: HookedDiffusion, names: Any, blocks: Any, **streams: Any) -> Any:
    with model.concept_streams(CONCEPTS, blocks=blocks, **streams):
        _, cache = model.run_with_cache(names_filter=names, **short("flux", steps=1))
    return cache


def test_only_double_blocks_carry_concepts_by_default(
    model: HookedDiffusion, singles: range
) -> None:
    with model.concept_streams(CONCEPTS) as streams:
        assert streams.blocks == tuple(range(singles.start))
    with model.concept_streams(CONCEPTS, blocks=range(model.n_blocks)) as streams:
        assert streams.blocks == tuple(range(model.n_blocks))
    with model.concept_streams(CONCEPTS, blocks=[-1]) as streams:
        assert streams.blocks == (model.n_blocks - 1,)


def test_they_have_every_point_that_text_has_there(model: HookedDiffusion, singles: range) -> None:
    block = singles[0]
    text = {
        name.replace(".txt.", ".concept.") for name in model.hook_names(f"blocks.{block}.**.txt.**")
    } | {name.replace(".txt.", ".concept.") for name in model.hook_names(f"blocks.{block}.txt.**")}
    with model.concept_streams(CONCEPTS, blocks=[block]):
        own = set(model.hook_names(f"blocks.{block}.**.concept.**"))
    products = {f"blocks.{block}.attn.concept.hook_{name}" for name in ("attn_scores", "pattern")}
    assert own == text | products


def test_values_equal_a_full_run_of_the_block_with_concepts_as_text(
    model: HookedDiffusion, singles: range
) -> None:
    given: list[dict[str, Any]] = []
    blocks = list(model.denoiser.single_transformer_blocks)
    handles = [
        block.register_forward_pre_hook(
            lambda _module, _args, kwargs: given.append(dict(kwargs)), with_kwargs=True
        )
        for block in blocks
    ]
    try:
        cache = cached(model, "**.concept.hook_resid_*", singles, pooled="prompt")
    finally:
        for handle in handles:
            handle.remove()
    for number, block, kwargs in zip(singles, blocks, given, strict=True):
        before = cache[f"blocks.{number}.concept.hook_resid_pre"][0]
        count = kwargs["encoder_hidden_states"].shape[1]
        rotary = kwargs["image_rotary_emb"]
        kept = [*range(before.shape[1]), *range(count, len(rotary[0]))]
        kwargs["image_rotary_emb"] = tuple(part[kept] for part in rotary)
        with torch.no_grad():
            after = block.forward(**{**kwargs, "encoder_hidden_states": before})[0]
        found = cache[f"blocks.{number}.concept.hook_resid_post"][0]
        torch.testing.assert_close(found, after, atol=2e-6, rtol=2e-6)


def test_the_first_takes_what_the_last_double_block_left(
    model: HookedDiffusion, singles: range
) -> None:
    names = [f"blocks.{singles.start - 1}.concept.hook_resid_post"]
    names.append(f"blocks.{singles.start}.concept.hook_resid_pre")
    cache = cached(model, names, range(model.n_blocks))
    assert torch.equal(cache[names[0]], cache[names[1]])


def test_sums_and_products_hold(model: HookedDiffusion, singles: range) -> None:
    cache = cached(model, ["**.concept.**", "**.attn.img.hook_v"], singles)
    for block in singles:
        at = f"blocks.{block}."
        post = cache[at + "concept.hook_resid_pre"] + cache[at + "concept.hook_attn_update"]
        post = post + cache[at + "concept.hook_mlp_update"]
        torch.testing.assert_close(cache[at + "concept.hook_resid_post"], post)
        total = cache[at + "attn.concept.hook_result"].sum(-2)
        raw = cache[at + "concept.hook_attn_out"]
        torch.testing.assert_close(total, raw, atol=1e-5, rtol=1e-5)
        values = [cache[f"{at}attn.{stream}.hook_v"][0] for stream in ("concept", "img")]
        pattern = cache[at + "attn.concept.hook_pattern"][0]
        z = torch.einsum("bhqk,bkhd->bqhd", pattern, torch.cat(values, 1))
        torch.testing.assert_close(z, cache[at + "attn.concept.hook_z"][0], atol=1e-5, rtol=1e-5)


def test_queries_before_rope_are_those_of_the_concepts(
    model: HookedDiffusion, singles: range
) -> None:
    # Concepts lie at position 0, where the rotary embedding turns nothing.
    for attend in (("concepts", "image"), ("image",)):
        names = [f"blocks.{block}.attn.concept.hook_q*" for block in singles]
        cache = cached(model, names, singles, attend=attend)
        for block in singles:
            at = f"blocks.{block}.attn.concept.hook_q"
            torch.testing.assert_close(cache[at], cache[at + "_pre_rope"])


@pytest.mark.slow
@pytest.mark.parametrize("hook", [nothing, noise])
def test_the_image_keeps_its_bits(model: HookedDiffusion, singles: range, hook: Any) -> None:
    settings = short("flux", true_cfg_scale=3.0, negative_prompt="a dog")
    plain = model.pipe(**settings).images  # type: ignore[misc]
    with model.concept_streams(CONCEPTS, blocks=range(model.n_blocks)):
        out = model.run_with_hooks(fwd_hooks=[("**.concept.**", hook)], **settings)
    assert torch.equal(latents_of(out), plain)
    assert {row.fired for row in out.report} == {4}


def test_edits_go_on_into_later_blocks(model: HookedDiffusion, singles: range) -> None:
    first, second = (f"blocks.{block}.attn.concept.hook_z" for block in singles[:2])
    site = Site(first, heads=0, pos=0)
    settings = short("flux", steps=1)
    with model.concept_streams(CONCEPTS, blocks=singles):
        _, before = model.run_with_cache(names_filter=second, **settings)
        with model.hooks([(site, noise)]):
            _, after = model.run_with_cache(names_filter=second, **settings)
    assert not torch.equal(before[second], after[second])


def test_image_queries_are_there_as_well(model: HookedDiffusion, singles: range) -> None:
    name = f"blocks.{singles[0]}.attn.img_with_concepts.hook_z"
    cache = cached(model, name, singles, image_queries=True)
    _, _, tokens, heads, width = cache[name].shape
    attention = model.denoiser.single_transformer_blocks[0].attn
    assert (heads, heads * width) == (attention.heads, attention.inner_dim)
    assert tokens == short("flux")["latents"].shape[1]
