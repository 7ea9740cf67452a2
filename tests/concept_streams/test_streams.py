"""Concept streams ride beside the image: what they are, and that the image never notices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lens import HookContext, HookedDiffusion, Site
from diffusion_lens.errors import (
    ConceptError,
    HookNeverFiredError,
    UnknownHookPointError,
    UnsupportedModelError,
)
from tests.pipelines import fresh_pipe, golden, latents_of, shared_pipe, short, traces

CONCEPTS = ["cat", "glass table"]
CARRIERS = ("sd3", "sd35", "flux", "cogvideox")


@pytest.fixture(params=CARRIERS)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(family: str) -> HookedDiffusion:
    return HookedDiffusion(shared_pipe(family))


def concept_names(model: HookedDiffusion) -> list[str]:
    return [name for name in model.hook_names() if ".concept." in name]


def text_width(model: HookedDiffusion) -> int:
    """Width of the text embeddings that concepts are made of."""
    entry = model.spec.concepts
    assert entry is not None
    return model.denoiser.get_submodule(entry.through[0]).in_features


def nothing(_activation: Tensor, _hook: HookContext) -> None:
    return None


def noise(activation: Tensor, _hook: HookContext) -> Tensor:
    return activation + 1


def two_calls(family: str) -> dict[str, Any]:
    """Guidance as the family does it: batched, or by two calls."""
    more = {"true_cfg_scale": 3.0, "negative_prompt": "a dog"} if family == "flux" else {}
    return short(family, **more)


class TestImage:
    @pytest.mark.slow
    @pytest.mark.parametrize("hook", [nothing, noise])
    def test_the_image_keeps_its_bits(
        self, family: str, model: HookedDiffusion, hook: Callable
    ) -> None:
        settings = two_calls(family)
        plain = model.pipe(**settings)[0]  # type: ignore[misc]
        with model.concept_streams(CONCEPTS):
            names = concept_names(model)
            out = model.run_with_hooks(fwd_hooks=[("**.concept.**", hook)], **settings)
        assert torch.equal(latents_of(out), plain)
        assert {row.name for row in out.report} == set(names)
        assert all(row.fired == 4 for row in out.report)  # two steps, two branches

    @pytest.mark.slow
    def test_the_image_keeps_its_bits_beside_hooks_of_the_main_pass(
        self, family: str, model: HookedDiffusion
    ) -> None:
        settings = short(family)
        edits = [
            ("blocks.1.attn.img.hook_k", noise),
            ("blocks.0.img.hook_attn_update", noise),
            ("blocks.0.txt.hook_resid_mid", noise),
            ("blocks.1.attn.hook_pattern", nothing),
        ]
        plain = model.run_with_hooks(fwd_hooks=edits, **settings)
        with model.concept_streams(CONCEPTS):
            both = [*edits, ("**.concept.**", noise)]
            out = model.run_with_hooks(fwd_hooks=both, **settings)
        assert torch.equal(latents_of(out), latents_of(plain))
        main = [row for row in out.report if ".concept." not in row.name]
        assert [(row.name, row.fired) for row in main] == [
            (row.name, row.fired) for row in plain.report
        ]

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_the_image_keeps_its_bits_in_half_precision(
        self, family: str, dtype: torch.dtype
    ) -> None:
        pipe = fresh_pipe(family).to(dtype)
        settings = short(family, steps=1)
        settings["latents"] = settings["latents"].to(dtype)
        plain = pipe(**settings)[0]
        model = HookedDiffusion(pipe)
        with model.concept_streams(CONCEPTS):
            out = model.run_with_hooks(fwd_hooks=[("**.concept.**", nothing)], **settings)
        assert torch.equal(latents_of(out), plain)


class TestValues:
    def test_they_equal_a_full_run_of_the_block_with_concepts_as_text(
        self, family: str, model: HookedDiffusion
    ) -> None:
        given: list[tuple[Any, dict]] = []
        blocks = list(model.denoiser.transformer_blocks)
        handles = [
            block.register_forward_pre_hook(
                lambda module, _args, kwargs: given.append((module, dict(kwargs))), with_kwargs=True
            )
            for block in blocks
        ]
        try:
            with model.concept_streams(CONCEPTS, pooled="prompt"):
                _, cache = model.run_with_cache(
                    names_filter="**.concept.hook_resid_*",
                    branch="all",
                    **short(family, steps=1, guided=False),
                )
        finally:
            for handle in handles:
                handle.remove()
        for index, (block, kwargs) in enumerate(given):
            before = cache[f"blocks.{index}.concept.hook_resid_pre"][0]
            rotary = kwargs.get("image_rotary_emb")
            if rotary is not None:
                count = kwargs["encoder_hidden_states"].shape[1]
                kept = [*range(before.shape[1]), *range(count, len(rotary[0]))]
                kwargs["image_rotary_emb"] = tuple(part[kept] for part in rotary)
            place = model.points[f"blocks.{index}.txt.hook_resid_pre"].source.block.spec  # type: ignore[attr-defined]
            with torch.no_grad():
                outputs = block.forward(**{**kwargs, "encoder_hidden_states": before})
            after = outputs[place.streams["txt"].output]
            name = f"blocks.{index}.concept.hook_resid_post"
            assert (after is None) == (name not in cache.keys())  # noqa: SIM118
            if after is not None:
                torch.testing.assert_close(cache[name][0], after, atol=2e-6, rtol=2e-6)
        assert len(given) == len(blocks)

    @pytest.mark.slow
    def test_residuals_add_up(self, family: str, model: HookedDiffusion) -> None:
        with model.concept_streams(CONCEPTS):
            _, cache = model.run_with_cache(names_filter="**.concept.**", **short(family, steps=1))
        for block in (0, 1):
            at = f"blocks.{block}.concept."
            mid = cache[at + "hook_resid_pre"] + cache[at + "hook_attn_update"]
            torch.testing.assert_close(cache[at + "hook_resid_mid"], mid)
            post = mid + cache[at + "hook_mlp_update"]
            torch.testing.assert_close(cache[at + "hook_resid_post"], post)
            after = cache[f"blocks.{block + 1}.concept.hook_resid_pre"]
            assert torch.equal(cache[at + "hook_resid_post"], after)

    def test_patterns_mix_the_values_of_concepts_and_image(
        self, family: str, model: HookedDiffusion
    ) -> None:
        order = ("img", "concept") if family.startswith("sd3") else ("concept", "img")
        with model.concept_streams(CONCEPTS):
            names = ["hook_pattern", "hook_v", "hook_z"]
            sites = [f"**.attn.concept.{name}" for name in names]
            point = model.points["blocks.1.attn.concept.hook_pattern"]
            assert point.sequences == {"query": ("concept",), "key": order}
            _, cache = model.run_with_cache(
                names_filter=[*sites, "**.attn.img.hook_v"], **short(family, steps=1)
            )
        blocks = model.denoiser.config.num_layers
        for block in range(blocks):
            at = f"blocks.{block}.attn."
            pattern = cache[at + "concept.hook_pattern"][0]
            torch.testing.assert_close(pattern.sum(-1), torch.ones_like(pattern.sum(-1)))
            values = torch.cat([cache[f"{at}{stream}.hook_v"][0] for stream in order], 1)
            z = torch.einsum("bhqk,bkhd->bqhd", pattern, values)
            torch.testing.assert_close(z, cache[at + "concept.hook_z"][0], atol=1e-5, rtol=1e-5)

    def test_results_of_the_heads_add_up_to_the_raw_output(
        self, family: str, model: HookedDiffusion
    ) -> None:
        names = ["blocks.0.attn.concept.hook_result", "blocks.0.concept.hook_attn_out"]
        with model.concept_streams(CONCEPTS):
            _, cache = model.run_with_cache(names_filter=names, **short(family, steps=1))
        point = model.points["blocks.0.attn.txt.hook_z"]
        bias = model.denoiser.get_submodule(point.module).bias
        result, out = (cache[name] for name in names)
        torch.testing.assert_close(result.sum(-2) + bias, out, atol=1e-5, rtol=1e-5)

    @pytest.mark.slow
    def test_prompts_of_a_batch_and_embeddings_of_their_own(self, family: str) -> None:
        model = HookedDiffusion(shared_pipe(family))
        settings = short(family, steps=1)
        settings.pop("prompt")
        latents = settings.pop("latents")
        prompts = ["a red cat on the glass table", "two dogs in a snowy park"]
        width = text_width(model)
        embeddings = torch.randn(2, 3, width)
        name = "blocks.1.attn.concept.hook_z"

        def values(prompt: Any, given: Tensor, count: int) -> Tensor:
            with model.concept_streams(given):
                repeated = latents.expand(count, *latents.shape[1:])
                _, cache = model.run_with_cache(
                    prompt, names_filter=name, branch="all", latents=repeated, **settings
                )
            return torch.cat([cache.branch(branch)[name] for branch in cache.branches])

        together = values(prompts, embeddings, 2)
        for row, prompt in enumerate(prompts):
            alone = values(prompt, embeddings[row : row + 1], 1)
            torch.testing.assert_close(together[:, row : row + 1], alone, atol=1e-5, rtol=1e-5)

    def test_gradients_flow_from_concepts_to_the_image(
        self, family: str, model: HookedDiffusion
    ) -> None:
        settings = short(family)
        latents = settings.pop("latents").clone().requires_grad_()
        del settings["output_type"]
        name = "blocks.1.attn.concept.hook_pattern"
        with model.concept_streams(CONCEPTS):
            with model.caching(Site(name, key="img")) as cache:
                model.denoise(latents, step=0, **settings)
            cache.at(step=0)[name].square().sum().backward()
        assert latents.grad is not None and latents.grad.abs().sum() > 0


class TestAttend:
    def z(self, model: HookedDiffusion, family: str, attend: Any, *names: str) -> Any:
        with model.concept_streams(CONCEPTS, attend=attend):
            known = concept_names(model)
            _, cache = model.run_with_cache(
                names_filter=[f"blocks.1.{name}" for name in names], **short(family, steps=1)
            )
        return cache, known

    def test_without_attention_z_is_the_concepts_own_value(
        self, family: str, model: HookedDiffusion
    ) -> None:
        cache, known = self.z(model, family, (), "attn.concept.hook_z", "attn.concept.hook_v")
        at = "blocks.1.attn.concept."
        assert torch.equal(cache[at + "hook_z"], cache[at + "hook_v"])
        assert at + "hook_pattern" not in known and at + "hook_q" not in known

    @pytest.mark.slow
    @pytest.mark.parametrize(("attend", "stream"), [("image", "img"), ("concepts", "concept")])
    def test_one_of_the_two(
        self, family: str, model: HookedDiffusion, attend: str, stream: str
    ) -> None:
        cache, known = self.z(
            model,
            family,
            attend,
            "attn.concept.hook_z",
            "attn.concept.hook_pattern",
            f"attn.{stream}.hook_v",
        )
        at = "blocks.1.attn."
        pattern, values = cache[at + "concept.hook_pattern"], cache[f"{at}{stream}.hook_v"]
        z = torch.einsum("sbhqk,sbkhd->sbqhd", pattern, values)
        torch.testing.assert_close(z, cache[at + "concept.hook_z"], atol=1e-5, rtol=1e-5)
        assert (at + "concept.hook_k" in known) == (attend == "concepts")


class TestEditing:
    def changed(self, model: HookedDiffusion, family: str, where: Any, fn: Callable) -> set[str]:
        """Names of the concept points whose values an edit changes."""
        settings = short(family, steps=1)
        names = ["**.concept.hook_resid_*", "**.attn.concept.hook_z"]
        with model.concept_streams(CONCEPTS):
            _, before = model.run_with_cache(names_filter=names, **settings)
            with model.hooks([(where, fn)]):
                _, after = model.run_with_cache(names_filter=names, **settings)
        return {key for key in before.keys() if not torch.equal(before[key], after[key])}  # noqa: SIM118

    @pytest.mark.slow
    def test_an_edit_goes_on_into_later_blocks(self, family: str, model: HookedDiffusion) -> None:
        found = self.changed(model, family, "blocks.0.concept.hook_resid_post", noise)
        assert "blocks.1.attn.concept.hook_z" in found
        assert "blocks.0.concept.hook_resid_post" in found
        assert "blocks.0.attn.concept.hook_z" not in found

    @pytest.mark.slow
    def test_a_change_in_place_is_an_edit(self, family: str, model: HookedDiffusion) -> None:
        def cut(pattern: Tensor, _hook: HookContext) -> None:
            pattern.zero_()

        where = Site("blocks.1.attn.concept.hook_pattern", heads=0, key="img")
        found = self.changed(model, family, where, cut)
        assert "blocks.1.attn.concept.hook_z" in found
        assert not any(name.startswith("blocks.0.") for name in found)

    @pytest.mark.slow
    def test_image_keys_as_hooks_left_them_are_what_concepts_see(
        self, family: str, model: HookedDiffusion
    ) -> None:
        found = self.changed(model, family, "blocks.0.attn.img.hook_v", noise)
        assert "blocks.0.attn.concept.hook_z" in found

    def test_rows_of_one_concept_can_be_addressed(
        self, family: str, model: HookedDiffusion
    ) -> None:
        seen = []
        with model.concept_streams(CONCEPTS) as streams:
            assert streams.names == tuple(CONCEPTS)
            rows = streams.rows["glass table"]
            site = Site("blocks.0.attn.concept.hook_z", pos=("concept", rows))
            hook = lambda value, hook: seen.append((value.shape[1], hook.streams))  # noqa: E731
            model.run_with_hooks(fwd_hooks=[(site, hook)], **short(family, steps=1))
        count = rows.stop - rows.start
        assert count > 1
        assert all(found == (count, {"concept": slice(0, count)}) for found in seen)


class TestContext:
    def test_points_exist_only_inside(self, family: str, model: HookedDiffusion) -> None:
        before, names = traces(model.pipe), model.hook_names()
        with model.concept_streams(CONCEPTS):
            assert len(model.hook_names()) > len(names)
            model.add_hook("blocks.0.attn.concept.hook_z", nothing)
            model.add_hook("blocks.0.attn.img.hook_z", nothing)
        assert model.hook_names() == names
        with pytest.raises(UnknownHookPointError), model.hooks([("**.concept.hook_z", nothing)]):
            pass
        out = model(**short(family, steps=1))
        assert {row.name for row in out.report} == {"blocks.0.attn.img.hook_z"}
        model.reset_hooks()
        assert traces(model.pipe) == before

    @pytest.mark.slow
    def test_an_error_in_a_hook_leaves_the_model_as_it_was(
        self, family: str, model: HookedDiffusion
    ) -> None:
        settings = short(family, steps=1)
        before, plain = traces(model.pipe), latents_of(model(**settings))

        def stop(_activation: Tensor, _hook: HookContext) -> None:
            raise KeyboardInterrupt

        for name in ("attn.concept.hook_pattern", "concept.hook_resid_pre", "concept.hook_mlp_out"):
            with pytest.raises(KeyboardInterrupt), model.concept_streams(CONCEPTS):
                model.run_with_hooks(fwd_hooks=[(f"blocks.1.{name}", stop)], **settings)
            assert traces(model.pipe) == before, name
        assert torch.equal(latents_of(model(**settings)), plain)

    def test_nothing_runs_that_nobody_asks_for(self, family: str, model: HookedDiffusion) -> None:
        calls = []
        handles = [
            block.norm1.register_forward_hook(lambda *_, at=at: calls.append(at))
            for at, block in enumerate(model.denoiser.transformer_blocks)
        ]
        blocks = len(handles)
        try:
            with model.concept_streams(CONCEPTS):
                model(**short(family))
                assert len(calls) == 2 * blocks
                calls.clear()
                site = Site("blocks.1.attn.concept.hook_z", steps=1)
                model.run_with_hooks(fwd_hooks=[(site, nothing)], **short(family))
        finally:
            for handle in handles:
                handle.remove()
        assert len(calls) == 2 * blocks + 2
        assert [calls.count(block) for block in (0, 1, 2)] == [3, 3, 2]

    def test_blocks_restrict_the_points_but_not_the_way_there(
        self, family: str, model: HookedDiffusion
    ) -> None:
        name, settings = "blocks.1.attn.concept.hook_z", short(family, steps=1)
        with model.concept_streams(CONCEPTS):
            _, everywhere = model.run_with_cache(names_filter=name, **settings)
        with model.concept_streams(CONCEPTS, blocks=[1]):
            assert {model.points[found].block for found in concept_names(model)} == {1}
            _, one = model.run_with_cache(names_filter=name, **settings)
        assert torch.equal(everywhere[name], one[name])

    def test_values_of_a_concept_are_merged_by_their_mean(self, model: HookedDiffusion) -> None:
        with model.concept_streams(CONCEPTS) as streams:
            count = streams.tokens()["concept"]
            value = torch.randn(1, count, 4)
            merged = streams.merge(value)
            expected = [value[:, rows].mean(1) for rows in streams.rows.values()]
            torch.testing.assert_close(merged, torch.stack(expected, 1))

    def test_the_table_lists_them_with_their_sizes(self, model: HookedDiffusion) -> None:
        with model.concept_streams(CONCEPTS) as streams:
            (row,) = model.hook_table("blocks.0.concept.hook_resid_pre")
        assert row.shape[:2] == (1, streams.tokens()["concept"])
        assert row.nbytes


class TestRows:
    def test_concepts_encoded_together_have_the_rows_of_their_own_tokens(
        self, model: HookedDiffusion
    ) -> None:
        joint: dict[str, Any] = {"tokens": "joint"}
        with model.concept_streams(CONCEPTS, **joint) as streams:
            rows, together = streams.rows, streams.given.embeddings
        with model.concept_streams(["cat glass table"], **joint) as streams:
            assert torch.equal(streams.given.embeddings, together)
            (whole,) = streams.rows.values()
        assert (rows["cat"].start, rows["glass table"].stop) == (whole.start, whole.stop)
        assert rows["cat"].stop == rows["glass table"].start
        assert together.shape[1] == whole.stop
        with model.concept_streams(["glass table", "cat"], **joint) as streams:
            assert not torch.equal(streams.given.embeddings, together)

    def test_slots_are_zeros_that_concepts_attend_to(
        self, family: str, model: HookedDiffusion
    ) -> None:
        name, found = "blocks.0.attn.concept.hook_z", []
        for slots in (None, 12):
            with model.concept_streams(CONCEPTS, slots=slots) as streams:
                _, cache = model.run_with_cache(names_filter=name, **short(family, steps=1))
                found.append((streams, cache[name][0]))
        (own, alone), (filled, among) = found
        assert filled.rows == own.rows and filled.tokens() == {"concept": 12}
        count = alone.shape[1]
        assert not filled.given.embeddings[:, count:].any()
        assert among.shape[1] == 12 and not torch.allclose(among[:, :count], alone)
        assert filled.merge(among).shape[1] == len(CONCEPTS)


class TestBadInput:
    def refused(self, model: HookedDiffusion, message: str, concepts: Any, **more: Any) -> None:
        with pytest.raises(ConceptError, match=message), model.concept_streams(concepts, **more):
            pass
        assert not [name for name in model.hook_names() if ".concept." in name]

    def test_concepts(self, model: HookedDiffusion) -> None:
        self.refused(model, "no concepts were given", [])
        self.refused(model, "' ' is empty", ["cat", " "])
        self.refused(model, "'cat' is given twice", ["cat", "cat"])
        self.refused(model, "tokens .* takes .*; shorten it", ["cat " * 600])
        self.refused(model, r"shape \(3, 7\); axes batch, concept, d_text", torch.zeros(3, 7))
        self.refused(model, r"d_text = \d+", torch.zeros(1, 3, 7))

    def test_concepts_encoded_together(self, model: HookedDiffusion) -> None:
        self.refused(model, "' ' is empty", ["cat", " "], tokens="joint")
        many = [f"cat{number}" for number in range(600)]
        self.refused(model, "tokens .* takes .*; shorten it", many, tokens="joint")

    def test_slots_that_do_not_hold_the_concepts(self, model: HookedDiffusion) -> None:
        self.refused(model, "slots=1 cannot hold the .* tokens", ["cat", "glass table"], slots=1)

    def test_a_step_that_does_not_exist(self, family: str, model: HookedDiffusion) -> None:
        hooks = [(Site("blocks.0.attn.concept.hook_z", steps=7), nothing)]
        with (
            model.concept_streams(["cat"]),
            pytest.raises(HookNeverFiredError, match=r"never fired at blocks\.0\.attn\.concept"),
        ):
            model.run_with_hooks(fwd_hooks=hooks, **short(family, steps=1))

    def test_choices(self, model: HookedDiffusion) -> None:
        self.refused(model, "tokens='frist' is none of .* Closest: 'first'", ["a"], tokens="frist")
        self.refused(model, "attend='images' is none of", ["a"], attend=["images"])
        self.refused(
            model, "block 99 has none: of the .* can carry concepts: 0", ["a"], blocks=[99]
        )
        self.refused(model, "blocks= is empty", ["a"], blocks=[])

    def test_pooled_embeddings(self, family: str, model: HookedDiffusion) -> None:
        embeddings = torch.zeros(1, 3, text_width(model))
        if family == "cogvideox":
            for pooled in ("zeros", "concepts", torch.zeros(1, 3)):
                self.refused(model, "takes no pooled text", embeddings, pooled=pooled)
            return
        self.refused(model, "pooled='zero' is none of .* Closest: 'zeros'", ["a"], pooled="zero")
        self.refused(model, 'pooled="concepts" needs', embeddings, pooled="concepts")
        self.refused(model, r"pooled= has shape \(3,\)", ["a"], pooled=torch.zeros(3))

    def test_a_second_context_is_refused_inside_the_first(self, model: HookedDiffusion) -> None:
        with model.concept_streams(["cat"]):
            with pytest.raises(ConceptError, match="open already"), model.concept_streams(["sky"]):
                pass
            assert concept_names(model)

    def test_embeddings_for_another_number_of_images(
        self, family: str, model: HookedDiffusion
    ) -> None:
        width = text_width(model)
        hooks = [("blocks.0.attn.concept.hook_z", nothing)]
        with (
            model.concept_streams(torch.zeros(3, 2, width)),
            pytest.raises(RuntimeError, match="a batch of 3 were given to a run of 1 image;"),
        ):
            model.run_with_hooks(fwd_hooks=hooks, **short(family, steps=1))


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_a_unet_says_what_to_use_instead(family: str) -> None:
    model = HookedDiffusion(shared_pipe(family))
    with (
        pytest.raises(
            UnsupportedModelError,
            match=r"attention_maps.*not in the prompt.*head_relevance.*text_pattern_sites",
        ),
        model.concept_streams(["cat"]),
    ):
        pass


def test_a_bare_denoiser_takes_embeddings() -> None:
    model = HookedDiffusion(shared_pipe("flux").transformer)
    with pytest.raises(ConceptError, match="no text encoder"), model.concept_streams(["cat"]):
        pass
    with model.concept_streams(golden("flux").inputs["ca.concept_embeds"]) as streams:
        assert streams.names == ("0", "1", "2")


def test_gradient_checkpointing_is_refused() -> None:
    pipe = fresh_pipe("flux")
    pipe.transformer.enable_gradient_checkpointing()
    model = HookedDiffusion(pipe)
    with (
        model.concept_streams(["cat"]),
        pytest.raises(RuntimeError, match="disable_gradient_checkpointing"),
        model.hooks([("blocks.0.attn.concept.hook_z", nothing)]),
    ):
        pass
