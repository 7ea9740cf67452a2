"""What cannot work is refused in words, and the model stays as it was."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lens import HookContext, HookedDiffusion, Run, Site, read_only
from diffusion_lens.engine.noise import noise_level
from diffusion_lens.errors import (
    CacheBudgetError,
    CacheFileError,
    CacheKeyError,
    DiffusionLensError,
    EngineError,
    HookNeverFiredError,
    HookReturnError,
    RunError,
    SiteError,
    UnknownHookPointError,
    UnsupportedModelError,
    WordError,
)
from diffusion_lens.hooked_diffusion.hooking import _pairs, _registration
from diffusion_lens.hooked_diffusion.output import versions
from diffusion_lens.reducers import Last, RunningMean, reducer_factory
from tests.pipelines import (
    branches_of,
    evaluation_of,
    fresh_pipe,
    golden,
    latents_of,
    shared_pipe,
    short,
    traces,
)

PATTERN = "blocks.0.cross_attn.hook_pattern"
Z = "blocks.0.attn.img.hook_z"


def nothing(_activation: Tensor, _hook: HookContext) -> None:
    return None


@pytest.fixture
def model() -> Iterator[HookedDiffusion]:
    pipe = shared_pipe("sd")
    evaluation_of("sd")  # before any hook is on: the first call runs the pipeline
    before = traces(pipe)
    yield HookedDiffusion(pipe)
    assert traces(pipe) == before


def run(model: HookedDiffusion, *hooks: Any, **more: Any) -> Any:
    return model.run_with_hooks(fwd_hooks=hooks, **short("sd", steps=1, **more))


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (
            "blocks.0.cross_attn.hook_patern",
            "hook points). Closest: blocks.0.cross_attn.hook_pattern",
        ),
        ("blocks.99.**", "no hook point matches 'blocks.99.**'"),
        ("native:conv_inn", "Closest: native:conv_in"),
        (lambda name: False, "no hook point matches the predicate"),
    ],
)
def test_unknown_names(model: HookedDiffusion, where: Any, message: str) -> None:
    with pytest.raises(UnknownHookPointError, match=re.escape(message)):
        run(model, (where, nothing))


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (Site("hook_latents", heads=0), "selects nothing: 1 names match, but none has such tokens"),
        (Site(Z, key="txt"), "selects nothing"),
        (Site(Z, pos="txt"), "selects nothing"),
        (Site(Z, query="img"), "selects nothing"),
        (Site("blocks.0.attn.hook_pattern", key="cat"), "selects nothing"),
        (Site("blocks.*.attn.img.hook_z", heads=[(99, 0)]), "selects nothing"),
        (Site("native:conv_in", pos=0), "selects nothing"),
        (Site(Z, heads=4), "has 4 heads (0 to 3), head 4 was asked for"),
        (Site(Z, heads=[0, -5]), "head -5 was asked for"),
        (
            Site("blocks.*.attn.img.hook_z", heads=[(0, 9)]),
            "where blocks differ give (block, head)",
        ),
        (
            Site("blocks.0.attn.img.hook_z", heads=[(0, 1), (3, 0)]),
            "names the (block, head) pair (3, 0), but matches only the blocks 0",
        ),
        (Site(Z, branch="con"), "names the branch 'con', this model has"),
        (Site(Z, branch="con"), "Closest: 'cond'. Leave branch= out for each in turn"),
        (
            Site(PATTERN, pos=3),
            "it selects along 'pos', which blocks.0.cross_attn.hook_pattern has not",
        ),
        (Site(PATTERN, pos=3), "its token axes are ['query', 'key']"),
    ],
    ids=str,
)
def test_sites_that_select_nothing(model: HookedDiffusion, site: Site, message: str) -> None:
    with pytest.raises(SiteError, match=re.escape(message)):
        run(model, (site, nothing))


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (Site(PATTERN, key=77), "index 77 is out of range, there are 77 tokens (0 to 76)"),
        (Site(PATTERN, key=("txt", -78)), "index -78 is out of range"),
        (Site(Z, pos=256), "index 256 is out of range, there are 256 tokens"),
        (Site(Z, pos=slice(300, None)), "does not lie inside the 256 tokens of the whole axis"),
        (
            Site(PATTERN, key=("txt", slice(5, 3))),
            "does not lie inside the 77 tokens of stream 'txt'",
        ),
        (Site(PATTERN, key=range(70, 80)), "does not lie inside the 77 tokens of the whole axis"),
        (Site(PATTERN, key=("txt", slice(0, 78))), "does not lie inside the 77 tokens of stream"),
        (Site(Z, pos=slice(250, 257)), "does not lie inside the 256 tokens"),
        (Site(PATTERN, key=[0, 77]), "index 77 is out of range"),
    ],
    ids=str,
)
def test_tokens_out_of_range(model: HookedDiffusion, site: Site, message: str) -> None:
    with pytest.raises(SiteError, match=re.escape(message)):
        run(model, (site, nothing))


def test_heads_that_are_named_twice_count_once(model: HookedDiffusion) -> None:
    seen = []

    def note(z: Tensor, hook: HookContext) -> None:
        seen.append((hook.heads, z.shape[2]))

    run(model, (Site(Z, heads=[0, -4]), note), (Site(Z, heads=[(0, 1), (0, -3)]), note))
    assert set(seen) == {((0,), 1), ((1,), 1)}
    run(model, (Site(Z, pos=slice(250, None)), lambda z, _hook: seen.append(z.shape[1])))
    assert seen[-1] == 6


def test_words_that_are_not_in_the_prompt(model: HookedDiffusion) -> None:
    with pytest.raises(WordError) as caught:
        run(model, (Site(PATTERN, key="cot", branch="cond"), nothing))
    assert str(caught.value) == (
        "'cot' is not in the prompt 'a red cat on the glass table'. Closest: 'cat'. Its words are "
        "a, red, cat, on, the, glass, table; token indices are accepted, too."
    )
    with pytest.raises(WordError, match=r"This is the prompt of branch 'uncond': give the Site"):
        run(model, (Site(PATTERN, key="cat", branch="uncond"), nothing))


def test_words_behind_the_tokenizers_limit(model: HookedDiffusion) -> None:
    prompt = "a " * 90 + "cat"
    with pytest.raises(WordError, match="behind the last token that the tokenizer keeps"):
        model.words(prompt, "cat")


def test_words_that_stand_elsewhere_in_another_prompt(model: HookedDiffusion) -> None:
    prompts = ["a red cat", "the cat"]
    with pytest.raises(WordError, match="'cat' stands at different tokens in the prompts of one"):
        model.run_with_hooks(
            prompts,
            fwd_hooks=[(Site(PATTERN, key="cat", branch="cond"), nothing)],
            num_inference_steps=1,
            output_type="latent",
        )


def test_words_where_no_prompt_is_known(model: HookedDiffusion) -> None:
    site = Site(PATTERN, key="cat", branch="cond")
    with (
        pytest.raises(WordError, match="the prompts of branch 'cond' are not known"),
        model.hooks([(site, nothing)], branches=branches_of("sd")),
        torch.no_grad(),
    ):
        model.denoiser(**evaluation_of("sd"))
    run(model, (site, nothing))
    with (
        pytest.raises(WordError, match="the prompts of branch 'cond' are not known"),
        model.hooks([(site, nothing)], branches=branches_of("sd")),
        torch.no_grad(),
    ):
        model.denoiser(**evaluation_of("sd"))


def test_words_need_a_tokenizer_with_offsets(model: HookedDiffusion) -> None:
    pipe = SimpleNamespace(tokenizer=SimpleNamespace(is_fast=False))
    from diffusion_lens.engine.words import word_tokens

    with pytest.raises(WordError, match="gives no character offsets"):
        word_tokens(pipe, model.spec.text_parts, "a cat", "cat")
    bare = HookedDiffusion(model.denoiser)
    with pytest.raises(RunError, match="a bare denoiser has no tokenizer"):
        bare.words("a cat", "cat")


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (Site("hook_latents", steps=7), "never fired at hook_latents"),
        (Site("hook_latents", steps=range(5, 9)), "though the model ran 1 step (0 to 0)"),
        (Site("hook_latents", branch="skip"), "in the branches ['cond', 'uncond']"),
    ],
    ids=str,
)
def test_hooks_that_never_fire(model: HookedDiffusion, site: Site, message: str) -> None:
    settings = short("sd", steps=1)
    for silent in (nothing, read_only(lambda *_: None)):
        with pytest.raises(HookNeverFiredError, match=re.escape(message)):
            model.run_with_hooks(fwd_hooks=[(site, silent)], **settings)
    with pytest.raises(HookNeverFiredError):
        model.run_with_cache(names_filter=site, show_progress=False, **settings)


def test_one_silent_block_among_several_is_named() -> None:
    model = HookedDiffusion(shared_pipe("sd3"))
    transformer, given = model.denoiser, {**evaluation_of("sd3"), "skip_layers": [1]}
    with (
        pytest.raises(HookNeverFiredError, match=r"never fired at blocks.1.img.hook_resid_pre \("),
        model.hooks([("blocks.*.img.hook_resid_pre", nothing)]),
        torch.no_grad(),
    ):
        transformer(**given)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (
            lambda z: z[:, 1:],
            "returned shape (1, 255, 4, 4), expected (1, 256, 4, 4); selected axes",
        ),
        (lambda z: z.sum(), "returned shape (), expected (1, 256, 4, 4)"),
        (
            lambda z: z.double(),
            "returned dtype torch.float64, expected torch.float32; `returned.to(",
        ),
        (lambda z: z.to("meta"), "returned device meta, expected cpu"),
        (lambda z: 3, "returned a int; return a tensor of shape (1, 256, 4, 4), or None"),
        (lambda z: (z,), "returned a tuple"),
    ],
)
@pytest.mark.parametrize("name", [Z, "blocks.0.attn.img.hook_q"])
def test_hooks_that_return_what_does_not_fit(
    model: HookedDiffusion, name: str, returned: Callable, message: str
) -> None:
    with pytest.raises(HookReturnError, match=re.escape(message)) as caught:
        run(model, (name, lambda z, _: returned(z)))
    assert name in str(caught.value) and "axes ('batch', 'pos', 'head', 'd_head')" in str(
        caught.value
    )


def test_backward_hooks_that_return_what_does_not_fit(model: HookedDiffusion) -> None:
    latents = golden("sd").inputs["latents"].clone().requires_grad_()
    with (
        pytest.raises(HookReturnError, match="returned shape"),
        model.hooks(bwd_hooks=[(Z, lambda gradient, _: gradient[:, 1:])]),
    ):
        pred = model.denoise(latents, prompt="a cat", step=0, num_inference_steps=2)
        pred.guided.sum().backward()


@pytest.mark.parametrize("name", [Z, PATTERN, "hook_latents", "blocks.0.img.hook_resid_mid"])
def test_hooks_that_break_their_promise_to_read_only(model: HookedDiffusion, name: str) -> None:
    def in_place(activation: Tensor, hook: HookContext) -> None:
        activation *= 2

    def anew(activation: Tensor, hook: HookContext) -> Tensor:
        return activation * 2

    for fn in (in_place, anew):
        with pytest.raises(HookReturnError, match="is marked read-only but edited the activation"):
            run(model, (name, read_only(fn)))


def test_hooks_that_are_no_functions(model: HookedDiffusion) -> None:
    with pytest.raises(RunError, match=re.escape("a hook is a function fn(activation, hook), got")):
        inspect.unwrap(_registration)(Z, "ablate")
    with pytest.raises(RunError, match="dir='forward': a hook is 'fwd' or 'bwd'"):
        model.add_hook(Z, nothing, dir="forward")


@pytest.mark.parametrize(
    "given",
    [(Z, nothing), [(Z, nothing), Z], [(Z, nothing, "fwd")]],
    ids=["a pair", "a name among pairs", "three things"],
)
def test_hooks_that_are_no_pairs(given: Any) -> None:
    with pytest.raises(RunError, match=r"pairs, found .* hook is `fwd_hooks=\[\(name, fn\)\]`"):
        inspect.unwrap(_pairs)(given)


def test_arguments_that_a_pipeline_would_swallow(model: HookedDiffusion) -> None:
    message = (
        "StableDiffusionPipeline takes no argument 'num_steps'. Closest: timesteps, "
        "num_inference_steps. Its arguments are prompt, height"
    )
    with pytest.raises(RunError, match=re.escape(message)):
        model("a cat", num_steps=3)
    with pytest.raises(RunError, match=re.escape(message)):
        model.denoise(golden("sd").inputs["latents"], prompt="a cat", step=0, num_steps=3)
    one = torch.Generator().manual_seed(3)
    with pytest.raises(RunError, match=r"both seed=1 and generator= were given"):
        model("a cat", seed=1, generator=one)
    settings: dict[str, Any] = {"num_inference_steps": 1, "output_type": "latent"}
    out = model("a cat", generator=one, **settings)
    assert out.made_by.seeds == () and out.latents is not None
    assert torch.equal(out.latents, latents_of(model("a cat", seed=3, **settings)))
    steps: list[int] = []
    with pytest.warns(FutureWarning, match="callback"):
        given: dict[str, Any] = {"callback": lambda step, *_: steps.append(step)}
        model("a cat", callback_steps=1, **given, **settings)
    assert steps


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
def test_schedulers_whose_noise_levels_are_not_described() -> None:
    from diffusers import KDPM2DiscreteScheduler

    pipe = fresh_pipe("sd")
    pipe.scheduler = KDPM2DiscreteScheduler.from_config(pipe.scheduler.config)
    model, seen = HookedDiffusion(pipe), []
    message = "KDPM2DiscreteScheduler evaluates between its own sigmas"
    with pytest.raises(EngineError, match=message):
        run(model, ("hook_latents", lambda _value, hook: seen.append(hook.sigma)))
    with pytest.raises(EngineError, match=message):
        run(model, ("hook_pred_x0", nothing))
    run(model, ("hook_latents", lambda _value, hook: seen.append(hook.timestep)))
    assert seen


def test_pipelines_and_latents_that_cannot_be_denoised() -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    pipe, latents = fresh_pipe("sd"), golden("sd").inputs["latents"]
    other = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    with pytest.raises(RunError, match="StableDiffusionImg2ImgPipeline makes its own latents"):
        HookedDiffusion(other).denoise(latents, prompt="a cat", step=0, num_inference_steps=2)
    with pytest.raises(RunError, match=r"the latents are torch.float16, the denoiser is torch.fl"):
        HookedDiffusion(pipe).denoise(latents.half(), prompt="a cat", step=0, num_inference_steps=2)


def test_what_is_no_pipeline_is_refused() -> None:
    for given in ("stabilityai/sdxl-turbo", Path("folder"), HookedDiffusion(shared_pipe("sd"))):
        with pytest.raises(UnsupportedModelError, match=r"is no pipeline; load an id or a folder"):
            HookedDiffusion(given)


def test_pipelines_without_a_known_denoiser(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedModelError, match="SimpleNamespace has no denoiser under any of"):
        HookedDiffusion(SimpleNamespace())
    with pytest.raises(UnsupportedModelError) as caught:
        HookedDiffusion(torch.nn.Linear(2, 2))
    assert "no architecture is registered for Linear; known denoisers are " in str(caught.value)
    fake = type("FluxTransformer2DModell", (torch.nn.Module,), {})()
    with pytest.raises(UnsupportedModelError, match="Closest: FluxTransformer2DModel"):
        HookedDiffusion(fake)
    empty = type("FluxTransformer2DModel", (torch.nn.Module,), {})()
    with pytest.raises(UnsupportedModelError, match="has no block of a known class"):
        HookedDiffusion(empty)


def test_unets_with_unusual_blocks() -> None:
    pipe = fresh_pipe("sd")
    pipe.unet.mid_block.attentions[0].transformer_blocks[0].only_cross_attention = True
    with pytest.raises(UnsupportedModelError, match="an unusual only_cross_attention has no desc"):
        HookedDiffusion(pipe)


def test_diffusers_caches_and_chunks_that_hide_hooks() -> None:
    pipe = fresh_pipe("flux")
    model, before = HookedDiffusion(pipe), traces(pipe)
    pipe.transformer._parallel_config = object()
    with pytest.raises(EngineError, match="runs context-parallel"):
        model.run_with_hooks(fwd_hooks=[("hook_latents", nothing)], **short("flux"))
    del pipe.transformer._parallel_config
    assert traces(pipe) == before
    unet = fresh_pipe("sd").unet
    unet.mid_block.attentions[0].transformer_blocks[0].set_chunk_feed_forward(4, 1)
    chunked = HookedDiffusion(unet)
    with (
        pytest.raises(EngineError, match=r"call `disable_forward_chunking\(\)` first"),
        chunked.hooks([("**.img.hook_z", nothing)]),
    ):
        pass
    assert traces(unet)["torch hooks"] == 0


def test_an_enabled_cache_is_refused_even_over_hooks_that_were_on() -> None:
    from diffusers import FirstBlockCacheConfig

    pipe = fresh_pipe("flux")
    model = HookedDiffusion(pipe)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.2))
    with pytest.raises(EngineError, match=r"call `disable_cache\(\)` first"):
        model.run_with_hooks(fwd_hooks=[("hook_latents", nothing)], **short("flux"))


def test_a_refused_hook_leaves_the_hooks_that_were_on() -> None:
    unet, seen = fresh_pipe("sd").unet, []
    model = HookedDiffusion(unet)
    last = max(point.block or 0 for point in model.points.values())
    unet.up_blocks[-1].attentions[-1].transformer_blocks[-1].set_chunk_feed_forward(4, 1)
    with model.hooks([(Z, lambda *_: seen.append(1))], branches=branches_of("sd")):
        with (
            pytest.raises(EngineError, match="in chunks"),
            model.hooks([(f"blocks.{last}.attn.img.hook_z", nothing)]),
        ):
            pass
        with torch.no_grad():
            unet(**evaluation_of("sd"))
    assert seen
    assert traces(unet)["torch hooks"] == 0


def test_attention_in_slices() -> None:
    unet = fresh_pipe("sd").unet
    unet.set_attention_slice(1)
    model = HookedDiffusion(unet)
    given, batch = evaluation_of("sd"), branches_of("sd")
    with (
        pytest.raises(EngineError, match=r"computes attention in slices.*disable_attention_slic"),
        model.hooks([("blocks.0.attn.hook_pattern", nothing)], branches=batch),
    ):
        unet(**given)
    assert traces(unet)["torch hooks"] == 0 and traces(unet)["modes"] == 0
    with model.hooks([(Z, nothing)], branches=batch), torch.no_grad():
        unet(**given)


def test_batches_whose_branches_cannot_be_told_apart(model: HookedDiffusion) -> None:
    given = {**evaluation_of("sd")}
    with (
        pytest.raises(
            EngineError, match=r"a batch of 2 cannot hold the branches .* in equal parts"
        ),
        model.hooks([(Z, nothing)], branches=("a", "b", "c")),
    ):
        model.denoiser(**given)
    projection = model.denoiser.time_proj
    handle = model.denoiser.conv_in.register_forward_pre_hook(
        lambda _module, _args: (projection(torch.ones(3)), None)[1]
    )
    with (
        contextlib.ExitStack() as undo,
        pytest.raises(EngineError, match="its branches cannot be told apart"),
        model.hooks([("native:time_proj", nothing)], branches=("uncond", "cond")),
    ):
        undo.callback(handle.remove)
        model.denoiser(**given)


def test_modules_that_run_outside_their_denoiser(model: HookedDiffusion) -> None:
    with (
        pytest.raises(EngineError, match="a hooked module ran outside its denoiser"),
        model.hooks([("native:conv_in", nothing)]),
    ):
        model.denoiser.conv_in(torch.zeros(1, 4, 8, 8))


def test_branches_given_for_one_context_end_with_it(model: HookedDiffusion) -> None:
    seen = []
    model.add_hook("hook_latents", lambda _value, hook: seen.append(hook.branch))
    with model.hooks([], branches=("first", "second")), torch.no_grad():
        model.denoiser(**evaluation_of("sd"))
    assert seen == ["first", "second"]
    seen.clear()
    shared_pipe("sd")(**short("sd", steps=1))
    assert set(seen) == {"uncond", "cond"}
    model.reset_hooks()


def test_bare_denoisers_have_no_pipeline() -> None:
    model = HookedDiffusion(shared_pipe("sd").unet)
    assert "bare denoiser" in repr(model) and "hook_guided_pred" not in model.points
    with pytest.raises(RunError, match="a bare denoiser does not generate"):
        model("a cat")
    with pytest.raises(RunError, match="a bare denoiser has no pipeline to take prompts"):
        model.denoise(torch.zeros(1, 4, 16, 16), prompt="a cat", step=0)
    with (
        pytest.raises(EngineError, match="a bare denoiser has no scheduler"),
        model.hooks([("hook_latents", lambda _value, hook: nothing(_value * hook.sigma, hook))]),
    ):
        model.denoiser(**evaluation_of("sd"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give exactly one of step= and noise_level=, got step=None and noise_level=None"),
        ({"step": 0, "noise_level": 0.5}, "give exactly one of step= and noise_level="),
        ({"noise_level": 0.0}, "noise_level=0.0 must lie above 0 and up to 1"),
        ({"noise_level": 1.5}, "noise_level=1.5 must lie above 0"),
        ({"step": 3}, "step 3 does not exist, these settings make 3 steps (0 to 2)"),
        ({"step": -1}, "step -1 does not exist"),
    ],
    ids=str,
)
def test_denoise_arguments(model: HookedDiffusion, arguments: Any, message: str) -> None:
    latents = golden("sd").inputs["latents"]
    with pytest.raises(RunError, match=re.escape(message)):
        model.denoise(latents, prompt="a cat", num_inference_steps=2, **arguments)


def test_latents_that_do_not_fit(model: HookedDiffusion) -> None:
    latents = golden("sd").inputs["latents"]
    with pytest.raises(RunError, match=r"latents of shape .* were given where the pipeline needs"):
        model.denoise(latents, prompt=["a cat", "a dog"], step=0, num_inference_steps=2)
    flux = HookedDiffusion(shared_pipe("flux"))
    packed = golden("flux").inputs["latents"]
    with pytest.raises(RunError, match="height= and width= in pixels where latents are packed"):
        flux.denoise(packed, prompt="a cat", step=0, height=64, width=64, num_inference_steps=2)
    with pytest.raises(RunError, match="packed latents of 64 tokens do not make an image of"):
        flux.decode_latents(packed, height=64, width=64)


def test_branches_that_did_not_run(model: HookedDiffusion) -> None:
    latents = golden("sd").inputs["latents"]
    pred = model.denoise(latents, prompt="a cat", step=0, num_inference_steps=2, guidance_scale=1.0)
    with pytest.raises(CacheKeyError, match=r"branch 'uncond' did not run, \['cond'\] did"):
        pred.uncond  # noqa: B018


def test_pipelines_that_never_step(model: HookedDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, latents = shared_pipe("sd").scheduler, golden("sd").inputs["latents"]
    original = type(scheduler).set_timesteps

    def no_steps(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)

    monkeypatch.setattr(type(scheduler), "set_timesteps", no_steps)
    monkeypatch.setattr(type(shared_pipe("sd")), "interrupt", property(lambda _: True))
    with pytest.raises(EngineError, match="finished without calling its scheduler"):
        model.denoise(latents, prompt="a cat", step=0, num_inference_steps=2)


def test_noise_arguments(model: HookedDiffusion) -> None:
    latents = torch.zeros(2, 4, 16, 16)
    with pytest.raises(RunError, match="noise_level=2 must lie between 0 and 1"):
        model.add_noise(latents, noise_level=2)
    with pytest.raises(RunError, match="3 seeds for 2 latents; give one, or one for each"):
        model.add_noise(latents, noise_level=0.5, seed=[1, 2, 3])
    with pytest.raises(EngineError, match="has no noise schedule that is understood here"):
        noise_level(SimpleNamespace(config={}), 3.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": 3}, "prompts are strings, got (3,)"),
        ({"prompt": []}, "prompts are strings, got ()"),
        ({"prompt": ["a", None]}, "prompts are strings"),
        ({"prompt": "a", "seed": "x"}, "a seed is a whole number"),
        ({"prompt": "a", "seed": 1.5}, "a seed is a whole number"),
        ({"prompt": "a", "seed": [1, None]}, "a seed is a whole number"),
    ],
)
def test_runs_that_are_none(arguments: Any, message: str) -> None:
    with pytest.raises(RunError, match=re.escape(message)):
        Run(**arguments)


def test_seeds_that_do_not_pair(model: HookedDiffusion) -> None:
    with pytest.raises(RunError, match="3 seeds for 2 prompts; give one seed for all prompts"):
        model(["a cat", "a dog"], seed=[1, 2, 3])
    with pytest.raises(
        RunError, match=r"the run has its own seed \(3\), seed=5 was given beside it"
    ):
        model(Run("a cat", seed=3), seed=5)


def test_reducers_that_are_none(model: HookedDiffusion) -> None:
    for wrong in ("median", 3, lambda: 3):
        with pytest.raises(RunError, match="update"):
            inspect.unwrap(reducer_factory)(wrong)
    for empty in (RunningMean(), Last()):
        with pytest.raises(RunError, match="nothing was reduced: the hook point never fired"):
            empty.result()


def test_caches_over_budget_keep_nothing(model: HookedDiffusion, tmp_path: Path) -> None:
    with pytest.raises(CacheBudgetError) as caught:
        model.run_with_cache(names_filter="**.hook_pattern", max_bytes=1000, **short("sd"))
    assert re.search(
        r"this cache would take .* \(14 hook points, 3 steps\), the budget is 1.0 kB. Narrow it "
        r"with names_filter=, steps=, .*; write it to disk with spool=folder; or raise max_bytes=",
        str(caught.value),
    )
    with pytest.raises(CacheBudgetError), model.caching(Z, max_bytes=0) as cache:
        model(**short("sd"))
    assert not cache.keys()
    (tmp_path / "file").touch()
    with pytest.raises(CacheFileError, match="is not empty: spool into a new folder"):
        model.run_with_cache(names_filter=Z, spool=tmp_path, **short("sd"))


def test_every_error_is_one_of_the_librarys_own() -> None:
    import diffusion_lens.errors as errors

    found = [one for name, one in vars(errors).items() if name.endswith("Error")]
    classes = [one for one in found if one.__module__ == errors.__name__]
    assert len(classes) > 10
    assert all(issubclass(one, DiffusionLensError) for one in classes)
    assert str(CacheKeyError()) == "" and str(CacheKeyError("a 'name'")) == "a 'name'"
    assert set(versions()) == {"diffusion_lens", "torch", "diffusers", "transformers"}


def test_images_that_cannot_be_encoded(model: HookedDiffusion) -> None:
    with pytest.raises(RunError, match=r"image= cannot be read \(.*\); give PIL images"):
        model.encode_image([])
    with pytest.raises(RunError, match="has 2 channels, AutoencoderKL takes 3; the axes of a"):
        model.encode_image(torch.zeros(1, 2, 16, 16))
