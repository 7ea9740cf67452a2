"""The image's queries over image and concepts: read beside the run, changed by nobody."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_lens import HookContext, HookedDiffusion, Site
from diffusion_lens.concept_streams.concept_pass import AskingHooks
from diffusion_lens.errors import DeadHookPointError, UnknownHookPointError
from tests.pipelines import latents_of, shared_pipe, short

CONCEPTS = ["cat", "glass table"]
ALL = "blocks.1.attn.img_with_concepts.*"
AT = "blocks.1.attn."


@pytest.fixture(params=["sd3", "sd35", "flux", "cogvideox"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(family: str) -> HookedDiffusion:
    return HookedDiffusion(shared_pipe(family))


def nothing(_activation: Tensor, _hook: HookContext) -> None:
    return None


def noise(activation: Tensor, _hook: HookContext) -> Tensor:
    return activation + 1


def read(model: HookedDiffusion, family: str, *names: str, **streams: Any) -> Any:
    with model.concept_streams(CONCEPTS, image_queries=True, **streams):
        return model.run_with_cache(
            names_filter=[AT + name for name in names], **short(family, steps=1)
        )


@pytest.mark.slow
def test_z_is_attention_over_image_and_concepts(family: str, model: HookedDiffusion) -> None:
    names = ["img.hook_q", "img.hook_k", "img.hook_v", "concept.hook_k", "concept.hook_v"]
    own = ["img_with_concepts.hook_z", "img_with_concepts.hook_pattern"]
    _, cache = read(model, family, *names, *own)
    z, pattern = (cache[AT + name][0] for name in own)
    torch.testing.assert_close(pattern.sum(-1), torch.ones_like(pattern.sum(-1)))
    order = ("img", "concept") if family.startswith("sd3") else ("concept", "img")
    key, value = (
        torch.cat([cache[f"{AT}{stream}.hook_{which}"][0] for stream in order], 1) for which in "kv"
    )
    mixed = torch.einsum("bhqk,bkhd->bqhd", pattern, value)
    torch.testing.assert_close(mixed, z, atol=1e-5, rtol=1e-5)
    query, key, value = (part.transpose(1, 2) for part in (cache[AT + "img.hook_q"][0], key, value))
    attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
    torch.testing.assert_close(attended, z, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("attend", ["image", "concepts", ()], ids=["image", "concepts", "none"])
def test_what_concepts_attend_to_is_of_no_account_in_the_first_block(
    family: str, model: HookedDiffusion, attend: Any
) -> None:
    name = "blocks.0.attn.img_with_concepts.hook_z"
    values = []
    for attended in (("concepts", "image"), attend):
        with model.concept_streams(CONCEPTS, image_queries=True, attend=attended):
            _, cache = model.run_with_cache(names_filter=name, **short(family, steps=1))
        values.append(cache[name])
    assert torch.equal(*values)


@pytest.mark.slow
def test_the_image_and_the_concepts_keep_their_bits(family: str, model: HookedDiffusion) -> None:
    settings, name = short(family), "blocks.2.attn.concept.hook_z"
    plain = model.pipe(**settings)[0]  # type: ignore[misc]
    with model.concept_streams(CONCEPTS):
        _, before = model.run_with_cache(names_filter=name, **settings)
    with model.concept_streams(CONCEPTS, image_queries=True):
        with model.hooks([(ALL, nothing)]):
            out, after = model.run_with_cache(names_filter=name, **settings)
        assert {row.fired for row in out.report if "img_with" in row.name} == {
            4 if model.spec.guidance == "batched" else 2
        }
    assert torch.equal(latents_of(out), plain)
    assert torch.equal(before[name], after[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hook_z", "hook_pattern", "hook_attn_scores"])
def test_edits_are_refused(family: str, model: HookedDiffusion, name: str) -> None:
    where = f"{AT}img_with_concepts.{name}"
    with (
        model.concept_streams(CONCEPTS, image_queries=True),
        pytest.raises(DeadHookPointError, match="no image token of a run sees a concept"),
    ):
        model.run_with_hooks(fwd_hooks=[(where, noise)], **short(family, steps=1))


@pytest.mark.slow
def test_concepts_as_hooks_left_them_are_what_the_image_sees(
    family: str, model: HookedDiffusion
) -> None:
    name = f"{AT}img_with_concepts.hook_z"
    settings = short(family, steps=1)
    with model.concept_streams(CONCEPTS, image_queries=True):
        _, before = model.run_with_cache(names_filter=name, **settings)
        with model.hooks([(AT + "concept.hook_v", noise)]):
            _, after = model.run_with_cache(names_filter=name, **settings)
    assert not torch.equal(before[name], after[name])


@pytest.mark.slow
def test_parts_can_be_addressed(family: str, model: HookedDiffusion) -> None:
    site = Site(f"{AT}img_with_concepts.hook_pattern", heads=0, key="concept")
    _, whole = read(model, family, "img_with_concepts.hook_pattern")
    with model.concept_streams(CONCEPTS, image_queries=True) as streams:
        count = streams.tokens()["concept"]
        _, part = model.run_with_cache(names_filter=site, **short(family, steps=1))
    name = f"{AT}img_with_concepts.hook_pattern"
    keys = slice(-count, None) if family.startswith("sd3") else slice(0, count)
    torch.testing.assert_close(part[name], whole[name][:, :, :1, :, keys])


def test_they_exist_where_they_are_asked_for_only(model: HookedDiffusion) -> None:
    with (
        model.concept_streams(CONCEPTS),
        pytest.raises(UnknownHookPointError),
        model.hooks([(ALL, nothing)]),
    ):
        pass


def test_nothing_is_computed_that_no_hook_reads(
    family: str, model: HookedDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    original = AskingHooks._over

    def counted(self: AskingHooks, streams: Any, query: Tensor, like: Any) -> Any:
        asked.append(query.shape[2])
        return original(self, streams, query, like)

    monkeypatch.setattr(AskingHooks, "_over", counted)
    site = Site(f"{AT}img_with_concepts.hook_z", steps=1, branch="cond")
    with model.concept_streams(CONCEPTS, image_queries=True) as streams:
        model.run_with_hooks(fwd_hooks=[(site, nothing)], **short(family))
        count = streams.tokens()["concept"]
    # At step 1 the concepts go through blocks 0 and 1; the image asks in block 1 alone.
    assert len(asked) == 3
    assert asked[:2] == [count, count]


def test_no_keys_are_kept_after_their_block(
    family: str, model: HookedDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = []
    original = AskingHooks.attend

    def noted(self: AskingHooks, call: int, product: Any) -> Tensor:
        hooks.append(self)
        return original(self, call, product)

    monkeypatch.setattr(AskingHooks, "attend", noted)
    with (
        model.concept_streams(CONCEPTS, image_queries=True),
        model.hooks([(ALL, nothing)]),
    ):
        model(**short(family, steps=1))
        assert hooks
        assert all(one._own is None and one.concepts.captured is None for one in hooks)
