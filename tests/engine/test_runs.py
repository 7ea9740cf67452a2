"""What a run knows is its own: callbacks, replaced parts, nested runs, copies, other wrappers."""

from __future__ import annotations

import copy
import inspect
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lens import HookContext, HookedDiffusion, Run, Site, read_only
from diffusion_lens.engine.branches import check_stated
from diffusion_lens.engine.observing import observed
from diffusion_lens.errors import EngineError, NestedRunError, RunError, WordError
from tests.pipelines import fresh_pipe, latents_of, shared_pipe, short

Z = "blocks.0.attn.img.hook_z"


@read_only
def look(_value: Tensor, _hook: HookContext) -> None: ...


def noted(seen: list[tuple[int, str, int]]) -> Any:
    @read_only
    def note(value: Tensor, hook: HookContext) -> None:
        seen.append((hook.step, hook.branch, value.shape[0]))

    return note


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_a_callback_that_encodes_a_prompt_leaves_the_run_alone(family: str) -> None:
    pipe, seen, words = fresh_pipe(family), [], []

    def callback(given: Any, _step: int, _time: Any, _tensors: dict) -> dict:
        given.encode_prompt("an old house", None) if family == "flux" else given.encode_prompt(
            "an old house", "cpu", 1, False
        )
        return {}

    def spell(_value: Tensor, hook: HookContext) -> None:
        if hook.branch == "cond":
            words.append("cat" in hook.words)

    settings = short(family, callback_on_step_end=callback)
    plain = pipe(**settings, generator=torch.Generator().manual_seed(0))[0]
    hooks = [("hook_latents", noted(seen)), ("hook_latents", spell)]
    with HookedDiffusion(pipe).hooks(hooks):
        out = pipe(**settings, generator=torch.Generator().manual_seed(0))[0]
    branches = ("cond",) if family == "flux" else ("uncond", "cond")
    steps = range(len(seen) // len(branches))
    assert len(steps) > 1
    assert seen == [(step, branch, 1) for step in steps for branch in branches]
    assert words == [True] * len(steps) and torch.equal(out, plain)


def test_the_users_own_call_follows_a_new_scheduler() -> None:
    from diffusers import EulerDiscreteScheduler

    pipe, seen = fresh_pipe("sd"), []
    model = HookedDiffusion(pipe)
    model.add_hook("hook_latents", noted(seen))
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe(**short("sd", steps=3))
    assert seen == [(step, branch, 1) for step in range(3) for branch in ("uncond", "cond")]
    model.reset_hooks()


def test_a_scheduler_replaced_in_the_middle_of_a_run_is_refused() -> None:
    pipe = fresh_pipe("sd")

    def swap(given: Any, _step: int, _time: Any, _tensors: dict) -> dict:
        given.scheduler = copy.deepcopy(given.scheduler)
        return {}

    with pytest.raises(EngineError, match="replaced by a PNDMScheduler in the middle of a run"):
        HookedDiffusion(pipe).run_with_hooks(
            fwd_hooks=[("hook_latents", look)], **short("sd", callback_on_step_end=swap)
        )


def test_the_users_own_call_follows_a_new_denoiser() -> None:
    pipe, seen = fresh_pipe("sd"), []
    model = HookedDiffusion(pipe)
    with model.hooks([(Z, noted(seen))]):
        pipe(**short("sd", steps=1))
        count = len(seen)
        pipe.unet = fresh_pipe("sd").unet
        pipe(**short("sd", steps=1))
    assert count and len(seen) == 2 * count


def test_a_lora_loaded_under_hooks_is_followed_by_the_users_own_call() -> None:
    from peft import LoraConfig

    pipe = fresh_pipe("sd")
    model, settings = HookedDiffusion(pipe), short("sd", steps=1)
    lora = LoraConfig(r=2, init_lora_weights=False, target_modules=["to_out.0"])
    with model.hooks([("blocks.0.attn.img.hook_z", lambda z, _hook: z * 0)]):
        torch.manual_seed(0)
        pipe.unet.add_adapter(lora)
        theirs = pipe(**settings, generator=[torch.Generator().manual_seed(0)]).images
        mine = latents_of(model(**settings))
    assert torch.equal(theirs, mine)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd", "flux"])
@pytest.mark.parametrize("name", [Z, "blocks.0.attn.hook_pattern", "hook_latents"])
def test_the_model_cannot_be_run_or_hooked_inside_its_own_hooks(family: str, name: str) -> None:
    pipe = fresh_pipe(family)
    model, settings = HookedDiffusion(pipe), short(family, steps=2)
    plain = latents_of(model(**settings))
    latents, kept = settings["latents"], {k: v for k, v in settings.items() if "lat" not in str(v)}
    kept.pop("latents", None)
    kept.pop("output_type", None)
    doings: list[Any] = [
        lambda: model(**settings),
        lambda: pipe(**settings),
        lambda: model.denoise(latents, step=0, **kept),
        lambda: model.add_hook(Z, look),
        lambda: model.reset_hooks(),
        lambda: model.caching("hook_latents").__enter__(),
        lambda: HookedDiffusion(pipe).run_with_hooks(fwd_hooks=[(Z, look)], **settings),
    ]
    for doing in doings:

        def hook(_value: Tensor, _hook: HookContext, doing: Any = doing) -> None:
            doing()

        with pytest.raises((NestedRunError, RunError), match=r"inside one of its own|another Hoo"):
            model.run_with_hooks(fwd_hooks=[(name, hook)], **settings)
        assert torch.equal(latents_of(model(**settings)), plain)


def test_a_callback_cannot_run_the_model_or_change_its_hooks() -> None:
    model = HookedDiffusion(fresh_pipe("sd"))
    settings = short("sd", steps=2)
    plain = latents_of(model(**settings))

    def denoise(_pipe: Any, _step: int, _time: Any, tensors: dict) -> dict:
        model.denoise(tensors["latents"], prompt="a cat", step=1, num_inference_steps=2)
        return {}

    def change(_pipe: Any, _step: int, _time: Any, _tensors: dict) -> dict:
        model.add_hook(Z, look)
        return {}

    for callback in (denoise, change):
        with pytest.raises(NestedRunError, match=r"inside its own run.*do it after the run"):
            model.run_with_hooks(
                fwd_hooks=[("hook_latents", look)], callback_on_step_end=callback, **settings
            )
    assert torch.equal(latents_of(model(**settings)), plain)


def test_another_model_can_be_run_inside_a_hook() -> None:
    outer, inner = HookedDiffusion(fresh_pipe("sd")), HookedDiffusion(fresh_pipe("flux"))
    settings, given = short("sd", steps=1), short("flux", steps=1)
    alone = latents_of(inner(**given))
    seen, found = [], []

    def hook(_value: Tensor, _hook: HookContext) -> None:
        found.append(latents_of(inner.run_with_hooks(fwd_hooks=[(Z, look)], **given)))

    pattern = Site("blocks.0.attn.hook_pattern", steps=[0])
    hooks: list[Any] = [(pattern, hook), ("hook_latents", noted(seen))]
    out = latents_of(outer.run_with_hooks(fwd_hooks=hooks, **settings))
    assert torch.equal(out, latents_of(outer(**settings)))
    assert len(found) == 2 and len(seen) >= 2 and all(torch.equal(one, alone) for one in found)


def test_hooks_of_one_thread_do_not_act_in_another() -> None:
    model, caught = HookedDiffusion(fresh_pipe("sd")), []

    def work(*doings: Any) -> None:
        for doing in doings:
            try:
                doing()
            except NestedRunError as error:
                caught.append(str(error))

    run = short("sd", steps=1)
    doings = (
        lambda: model.pipe(**run),
        lambda: model(**run),
        lambda: model.run_with_hooks(fwd_hooks=[(Z, look)], **run),
    )
    with model.hooks([(Z, look)]):
        thread = threading.Thread(target=work, args=doings)
        thread.start()
        thread.join()
        model(**run)
    assert len(caught) == 3 and all("another thread opened hooks" in text for text in caught)
    model.add_hook(Z, look)
    thread = threading.Thread(target=work, args=(lambda: model(**run),))
    thread.start()
    thread.join()
    assert len(caught) == 3
    model.reset_hooks()


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_copies_made_under_hooks_are_free_of_them(family: str) -> None:
    pipe = fresh_pipe(family)
    model, settings = HookedDiffusion(pipe), short(family, steps=2)
    plain = latents_of(model(**settings))
    with model.hooks([(Z, lambda z, _hook: z * 0), ("blocks.0.attn.hook_pattern", look)]):
        twin = copy.deepcopy(pipe)
        scheduler, shallow = copy.deepcopy(pipe.scheduler), copy.copy(pipe.scheduler)
        more = {"mu": 1.0} if family == "flux" else {}
        pipe.scheduler.set_timesteps(5, **more)
        for other, count in ((scheduler, 7), (shallow, 9)):
            other.set_timesteps(count, **more)
        inside = latents_of(HookedDiffusion(twin)(**settings))
    assert len(pipe.scheduler.timesteps) < len(scheduler.timesteps) < len(shallow.timesteps)
    for found in (inside, latents_of(HookedDiffusion(twin)(**settings))):
        torch.testing.assert_close(found, plain)  # a copy's memory lies elsewhere: not bit for bit
    assert torch.equal(latents_of(model(**settings)), plain)


def test_two_wrappers_of_one_pipeline_do_not_act_on_each_other() -> None:
    pipe = fresh_pipe("sd")
    first, second, settings = HookedDiffusion(pipe), HookedDiffusion(pipe), short("sd", steps=1)
    plain = latents_of(second(**settings))
    first.add_hook(Z, lambda z, _hook: z * 0)
    for doing in (
        lambda: second(**settings),
        lambda: second.run_with_hooks(fwd_hooks=[(Z, look)], **settings),
        lambda: second.denoise(settings["latents"], prompt="a cat", step=0, num_inference_steps=1),
    ):
        with pytest.raises(RunError, match=r"another HookedDiffusion .*including_others=True"):
            doing()
    second.reset_hooks(including_others=True)
    assert torch.equal(latents_of(second(**settings)), plain)


def test_another_pipeline_of_the_hooked_denoiser_is_refused() -> None:
    from diffusers import StableDiffusionPipeline

    pipe = fresh_pipe("sd")
    other = StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    for wrapped in (pipe, pipe.unet):
        with (
            HookedDiffusion(wrapped).hooks([("hook_latents", look)]),
            pytest.raises(EngineError, match="wrap the pipeline that runs"),
        ):
            other(**short("sd", steps=1))


def test_hooks_put_on_in_the_middle_of_a_run_are_refused() -> None:
    pipe = fresh_pipe("sd")
    model = HookedDiffusion(pipe)

    def callback(_pipe: Any, _step: int, _time: Any, _tensors: dict) -> dict:
        model.add_hook("hook_latents", look)
        return {}

    with pytest.raises(EngineError, match="put on in the middle of a run"):
        pipe(**short("sd", callback_on_step_end=callback))
    model.reset_hooks()


def test_words_of_a_negative_prompt_are_not_those_of_embeddings() -> None:
    pipe = fresh_pipe("flux")
    with torch.no_grad():
        embeds, pooled, _ = pipe.encode_prompt("a red cat", None, max_sequence_length=48)
    settings = short("flux", steps=1, true_cfg_scale=2.0, negative_prompt="a blue dog")
    del settings["prompt"]
    words: dict[str, Any] = {}

    def read(_value: Tensor, hook: HookContext) -> None:
        try:
            words[hook.branch] = sorted(hook.words)
        except WordError:
            words[hook.branch] = None

    HookedDiffusion(pipe).run_with_hooks(
        fwd_hooks=[("hook_latents", read)],
        prompt_embeds=embeds,
        pooled_prompt_embeds=pooled,
        **settings,
    )
    assert words == {"cond": None, "uncond": ["a", "blue", "dog"]}


def test_a_call_that_failed_leaves_no_prompt_to_the_next_one() -> None:
    pipe, words = fresh_pipe("flux"), []
    model, settings = HookedDiffusion(pipe), short("flux", steps=1)
    del settings["prompt"]
    with model.hooks([("hook_latents", lambda _v, hook: words.append(sorted(hook.words)))]):
        generators = [torch.Generator() for _ in range(3)]
        with pytest.raises(ValueError, match="list of generators"):
            pipe("an old house", **{**settings, "latents": None}, generator=generators)
        pipe("a red cat", **settings)
    assert words == [["a", "cat", "red"]]


@pytest.mark.parametrize("branches", [[None], ["cond", 3], "cond", [], ["cond", "cond"], [""]])
def test_branches_that_are_no_names_are_refused(branches: Any) -> None:
    with pytest.raises(RunError, match="name each part of the batch once"):
        inspect.unwrap(check_stated)(branches)


def test_what_one_run_saw_is_not_told_of_the_next() -> None:
    model = HookedDiffusion(shared_pipe("sd"))
    model.run_with_hooks(fwd_hooks=[("hook_latents", look)], **short("sd", steps=4))
    with pytest.raises(Exception, match=r"ran 1 step \(0 to 0\) in the branches \['cond'\]"):
        model.run_with_hooks(
            fwd_hooks=[(Site("hook_latents", branch="uncond"), look)],
            **{
                **short("sd", steps=1, guided=False),
                "num_inference_steps": 1,
                "guidance_scale": 1.0,
            },
        )


def test_a_cache_of_steps_enabled_under_hooks_is_refused() -> None:
    from diffusers import FirstBlockCacheConfig

    pipe = fresh_pipe("flux")
    model = HookedDiffusion(pipe)
    model.add_hook("hook_latents", look)
    pipe(**short("flux", steps=1))
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.2))
    for run in (pipe, model):
        with pytest.raises(EngineError, match="cache"):
            run(**short("flux", steps=1))
    pipe.transformer.disable_cache()
    model.reset_hooks()


class TestSeeds:
    def test_schedulers_that_draw_by_themselves_draw_from_the_runs_seed(self) -> None:
        from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler

        for kind, more in (
            (FlowMatchLCMScheduler, {}),
            (FlowMatchEulerDiscreteScheduler, {"stochastic_sampling": True}),
        ):
            pipe = fresh_pipe("flux")
            pipe.scheduler = kind.from_config(pipe.scheduler.config, **more)
            model, settings = HookedDiffusion(pipe), short("flux", steps=3)
            first = latents_of(model(**settings, seed=1))
            before = torch.get_rng_state()
            assert torch.equal(latents_of(model(**settings, seed=1)), first)
            assert torch.equal(torch.get_rng_state(), before)
            assert not torch.equal(latents_of(model(**settings, seed=2)), first)

    def test_samples_of_such_schedulers_share_their_seeds_noise(self) -> None:
        from diffusers import FlowMatchLCMScheduler

        pipe = fresh_pipe("flux")
        pipe.scheduler = FlowMatchLCMScheduler.from_config(pipe.scheduler.config)
        model = HookedDiffusion(pipe)
        settings = short("flux", steps=3, latents=None, prompt=["a red cat"] * 2)
        both = latents_of(model(**settings, seed=1))
        torch.testing.assert_close(both[0], both[1])

    def test_hooks_draw_from_the_global_generator_as_ever(self) -> None:
        model, drawn = HookedDiffusion(shared_pipe("flux")), []

        def draw(_value: Tensor, _hook: HookContext) -> None:
            drawn.append(float(torch.rand(())))

        for _ in range(2):
            model.run_with_hooks(
                fwd_hooks=[("hook_latents", draw), ("hook_guided_pred", draw)],
                **short("flux", steps=2),
            )
        assert len(set(drawn)) == len(drawn) == 8

    def test_a_runs_seed_and_another_beside_it_are_refused(self) -> None:
        model, run = HookedDiffusion(shared_pipe("sd")), Run(seed=3, **short("sd", steps=1))
        model(run)
        model(run, seed=3)
        for seed in (0, 4, None):
            with pytest.raises(RunError, match=r"has its own seed \(3\)"):
                model(run, seed=seed)
        with pytest.raises(RunError, match="both seed=0 and generator="):
            model(seed=0, generator=torch.Generator(), **short("sd", steps=1))


def test_one_negative_prompt_serves_all_prompts_of_a_batch() -> None:
    model = HookedDiffusion(shared_pipe("flux"))
    settings = short("flux", steps=1, latents=None, true_cfg_scale=2.0, negative_prompt="a dog")
    settings["prompt"] = ["a red cat", "a glass table"]
    plain = latents_of(model(**settings))
    names = ["hook_text_emb", "hook_pooled_text_emb", "blocks.0.txt.hook_resid_pre"]
    shapes = set()

    def same(value: Tensor, hook: HookContext) -> Tensor:
        shapes.add((hook.branch, value.shape[0]))
        return value.clone()

    hooks: list[Any] = [(name, same) for name in names]
    torch.testing.assert_close(latents_of(model.run_with_hooks(fwd_hooks=hooks, **settings)), plain)
    assert shapes == {("cond", 2), ("uncond", 2)}

    def second_only(value: Tensor, _hook: HookContext) -> None:
        value[1] *= 0

    site = Site("hook_text_emb", branch="uncond")
    out = latents_of(model.run_with_hooks(fwd_hooks=[(site, second_only)], **settings))
    torch.testing.assert_close(out[0], plain[0])
    assert not torch.allclose(out[1], plain[1], atol=1e-3)


def test_pipelines_without_a_step_callback_are_run() -> None:
    from diffusers import SemanticStableDiffusionPipeline

    parts = {k: v for k, v in fresh_pipe("sd").components.items() if k != "image_encoder"}
    pipe = SemanticStableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    settings = {"prompt": "a cat", "num_inference_steps": 2, "height": 32, "width": 32}
    plain: Any = pipe(output_type="latent", generator=torch.Generator().manual_seed(0), **settings)
    out = HookedDiffusion(pipe)(seed=0, output_type="np", **settings)
    assert out.latents is not None and torch.equal(out.latents, plain.images)
    assert out.made_by.steps == 3  # PNDM's


def test_a_bare_denoiser_says_what_needs_a_pipeline() -> None:
    model = HookedDiffusion(shared_pipe("sd").unet)
    latents = torch.zeros(1, 4, 16, 16)
    doings: dict[str, Any] = {
        "encode_image": lambda: model.encode_image(torch.zeros(1, 3, 32, 32)),
        "decode_latents": lambda: model.decode_latents(latents),
        "add_noise": lambda: model.add_noise(latents, noise_level=0.5),
    }
    for name, doing in doings.items():
        with pytest.raises(RunError, match=f"{name} needs a pipeline.*bare UNet2DConditionModel"):
            doing()


class TestObserving:
    class Owner:
        def double(self, value: int) -> int:
            return 2 * value

    def test_only_the_object_is_observed_and_the_class_comes_back(self) -> None:
        one, other, original = self.Owner(), self.Owner(), self.Owner.double

        def tell(original: Any, *args: Any, **kwargs: Any) -> Any:
            return -original(*args, **kwargs)

        def more(original: Any, *args: Any, **kwargs: Any) -> Any:
            return 1 + original(*args, **kwargs)

        with observed(one, "double", tell):
            with observed(one, "double", more), observed(other, "double", more):
                assert one.double(3) == -5 and other.double(value=3) == 7
                assert copy.deepcopy(one).double(3) == 6
            with observed(one, "double", more, innermost=True):
                assert one.double(3) == -7
            assert one.double(3) == -6 and other.double(3) == 6
        assert self.Owner.double is original and "double" not in vars(one)

    def test_contexts_that_close_in_another_order_leave_nothing(self) -> None:
        one, original = self.Owner(), self.Owner.double
        first = observed(one, "double", lambda call, *args: call(*args))
        second = observed(one, "double", lambda call, *args: 10 * call(*args))
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert one.double(1) == 20
        second.__exit__(None, None, None)
        assert self.Owner.double is original
