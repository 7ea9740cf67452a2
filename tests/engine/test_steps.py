"""Steps, guidance branches, grids and words, through the pipelines' own loops."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lens import HookContext, HookedDiffusion, Run, Site
from diffusion_lens.errors import EngineError, WordError
from tests.pipelines import evaluation_of, fresh_pipe, golden, latents_of, shared_pipe, short


class Log:
    """Notes where and when it was called."""

    def __init__(self) -> None:
        self.calls: list[HookContext] = []
        self.words: list[list[str]] = []
        self.shapes: list[tuple[int, ...]] = []
        self.facts: list[tuple[float, float, tuple[int, ...]]] = []

    def __call__(self, activation: Tensor, hook: HookContext) -> None:
        self.calls.append(hook)
        self.shapes.append(tuple(activation.shape))
        with contextlib.suppress(WordError):
            self.words.append(sorted(hook.words))
        self.facts.append((hook.timestep, hook.sigma, hook.grid))

    @property
    def steps(self) -> list[int]:
        return [hook.step for hook in self.calls]

    @property
    def branches(self) -> list[str]:
        return [hook.branch for hook in self.calls]


def logged(pipe: Any, name: Any, **settings: Any) -> tuple[Log, Any]:
    log = Log()
    out = HookedDiffusion(pipe).run_with_hooks(
        fwd_hooks=[(name, log)], output_type="latent", **settings
    )
    return log, out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheduler", "asked", "made"),
    [
        ("PNDMScheduler", 50, 51),
        ("PNDMScheduler", 4, 5),
        ("HeunDiscreteScheduler", 5, 9),
        ("EulerDiscreteScheduler", 5, 5),
        ("EulerAncestralDiscreteScheduler", 4, 4),
        ("DDIMScheduler", 4, 4),
        ("DPMSolverMultistepScheduler", 4, 4),
    ],
)
def test_a_step_is_one_evaluation(scheduler: str, asked: int, made: int) -> None:
    import diffusers

    pipe = fresh_pipe("sd")
    kind = getattr(diffusers, scheduler)
    pipe.scheduler = kind.from_config(pipe.scheduler.config)
    site = Site("hook_latents", branch="cond")
    log, out = logged(pipe, site, prompt="a cat", num_inference_steps=asked, height=32, width=32)
    assert log.steps == list(range(made)) and out.made_by.steps == made
    times = [fact[0] for fact in log.facts]
    assert times == pytest.approx(pipe.scheduler.timesteps[:made].tolist())
    if scheduler in ("EulerDiscreteScheduler", "HeunDiscreteScheduler"):
        sigmas = [fact[1] for fact in log.facts]
        assert sigmas == pytest.approx(pipe.scheduler.sigmas[:made].tolist(), rel=2e-3)
    if scheduler == "PNDMScheduler":
        assert len(set(times)) == made - 1
        alphas = pipe.scheduler.alphas_cumprod[int(times[0])]
        assert log.facts[0][1] == pytest.approx(float((1 - alphas) ** 0.5))


def test_flow_matching_sigmas_are_the_schedulers() -> None:
    for family in ("sd3", "flux"):
        pipe = shared_pipe(family)
        log, _ = logged(pipe, Site("hook_latents", branch="cond"), **_plain(family))
        assert [fact[1] for fact in log.facts] == pytest.approx(
            pipe.scheduler.sigmas[:-1].tolist(), rel=1e-5
        )


def _plain(family: str, **more: Any) -> dict[str, Any]:
    found = short(family, **more)
    del found["output_type"]
    return found


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "sd35"])
def test_batched_guidance_shows_each_branch_with_the_prompts_batch(family: str) -> None:
    settings = _plain(family, steps=1, num_images_per_prompt=2)
    del settings["latents"]
    log, _ = logged(shared_pipe(family), "hook_latents", **settings)
    assert log.branches[:2] == ["uncond", "cond"] and set(log.branches) == {"uncond", "cond"}
    assert {shape[0] for shape in log.shapes} == {2}
    off, _ = logged(shared_pipe(family), "hook_latents", **{**settings, "guidance_scale": 1.0})
    assert set(off.branches) == {"cond"} and {shape[0] for shape in off.shapes} == {2}


def test_true_guidance_of_flux_calls_twice_in_one_step() -> None:
    settings = _plain("flux", true_cfg_scale=3.0, negative_prompt="a blue dog")
    log, _ = logged(shared_pipe("flux"), "hook_latents", **settings)
    assert list(zip(log.steps, log.branches, strict=True)) == [
        (0, "cond"),
        (0, "uncond"),
        (1, "cond"),
        (1, "uncond"),
    ]
    assert "cat" in log.words[0] and log.words[1] == ["a", "blue", "dog"]


def test_true_guidance_of_flux_edits_only_its_branch() -> None:
    pipe, settings = shared_pipe("flux"), short("flux", true_cfg_scale=3.0, negative_prompt="dog")
    model = HookedDiffusion(pipe)
    _, plain = model.run_with_cache(
        names_filter="hook_noise_pred", branch="all", steps=0, **settings
    )
    with model.caching("hook_noise_pred", branch="all", steps=0) as cache:
        model.run_with_hooks(
            fwd_hooks=[(Site("blocks.0.attn.img.hook_z", branch="uncond"), lambda z, _: z * 0)],
            **settings,
        )
    assert torch.equal(cache.cond["hook_noise_pred"], plain.cond["hook_noise_pred"])
    assert not torch.equal(cache.uncond["hook_noise_pred"], plain.uncond["hook_noise_pred"])


def test_skip_layer_guidance_has_a_branch_of_its_own() -> None:
    settings = _plain("sd3", steps=4, skip_guidance_layers=[1], skip_layer_guidance_stop=0.9)
    log, _ = logged(shared_pipe("sd3"), "hook_latents", **settings)
    assert set(log.branches) == {"uncond", "cond", "skip"}
    for step in set(log.steps):
        found = [hook.branch for hook in log.calls if hook.step == step]
        assert found in (["uncond", "cond"], ["uncond", "cond", "skip"])
    block, _ = logged(shared_pipe("sd3"), "blocks.1.img.hook_resid_pre", **settings)
    assert set(block.branches) == {"uncond", "cond"}


def test_one_seed_is_the_same_noise_for_every_prompt() -> None:
    model = HookedDiffusion(shared_pipe("sd"))
    run: dict[str, Any] = {"num_inference_steps": 1, "output_type": "latent"}
    _, cache = model.run_with_cache(["a cat", "a dog"], seed=3, names_filter="hook_latents", **run)
    first = cache["hook_latents"][0]
    assert torch.equal(first[0], first[1])
    _, cache = model.run_with_cache(
        ["a cat", "a dog"], seed=[3, 4], names_filter="hook_latents", **run
    )
    assert torch.equal(cache["hook_latents"][0, 0], first[0])
    assert not torch.equal(cache["hook_latents"][0, 1], first[1])


def test_a_sample_does_not_depend_on_the_others_of_its_batch() -> None:
    model = HookedDiffusion(shared_pipe("sd"))
    run: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent"}
    together = latents_of(model(["a red cat", "a dog"], seed=[5, 6], **run))
    for index, (prompt, seed) in enumerate((("a red cat", 5), ("a dog", 6))):
        alone = latents_of(model(prompt, seed=seed, **run))
        torch.testing.assert_close(together[index : index + 1], alone, atol=1e-4, rtol=1e-3)


def test_images_of_one_prompt_count_up_from_its_seed() -> None:
    model = HookedDiffusion(shared_pipe("sd"))
    run: dict[str, Any] = {"num_inference_steps": 1, "output_type": "latent"}
    out = model(["a cat", "a dog"], seed=[3, 9], num_images_per_prompt=2, **run)
    assert out.made_by.seeds == (3, 4, 9, 10) and latents_of(out).shape[0] == 4
    single = latents_of(model("a dog", seed=10, **run))
    torch.testing.assert_close(latents_of(out)[3:], single, atol=1e-4, rtol=1e-3)


def test_stochastic_samplers_share_their_noise_between_runs_of_one_seed() -> None:
    from diffusers import EulerAncestralDiscreteScheduler

    pipe = fresh_pipe("sd")
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    model, run = HookedDiffusion(pipe), Run("a cat", num_inference_steps=3, output_type="latent")
    first = latents_of(model(run))
    assert torch.equal(latents_of(model(run)), first)
    assert not torch.equal(latents_of(model(run.with_(seed=1))), first)
    _, one = model.run_with_cache(run, names_filter="hook_noise_pred", branch="all")
    # The same predictions with the prompts exchanged give the same latents: all noise is shared.
    other = model.run_with_hooks(
        run.with_(prompt="a blue dog"),
        fwd_hooks=[
            (
                "hook_noise_pred",
                lambda _v, hook: one.entries["hook_noise_pred", hook.branch][hook.step],
            )
        ],
    )
    assert torch.equal(latents_of(other), first)


def test_no_seed_draws_anew_and_is_recorded() -> None:
    model = HookedDiffusion(shared_pipe("sd"))
    run: dict[str, Any] = {"num_inference_steps": 1, "output_type": "latent"}
    one, two = (model("a cat", seed=None, **run) for _ in range(2))
    assert one.made_by.seeds != two.made_by.seeds
    again = model("a cat", seed=list(one.made_by.seeds), **run)
    assert torch.equal(latents_of(again), latents_of(one))


class TestGridsAreReadOnce:
    """Flux's grid lies in position ids: reading it waits for an accelerator."""

    def counted(self, wrapped: Any) -> tuple[HookedDiffusion, list[tuple[int, ...]]]:
        model, read = HookedDiffusion(wrapped), []
        original = model.spec.grid

        def grid(*arguments: Any) -> tuple[int, ...]:
            read.append(original(*arguments))
            return read[-1]

        model.wiring.tracker.spec = replace(model.spec, grid=grid)
        return model, read

    def test_once_in_a_run(self) -> None:
        model, read = self.counted(shared_pipe("flux"))
        seen = []
        for size in (32, 48):
            hook = ("blocks.*.attn.img.hook_z", lambda _value, hook: seen.append(hook.grid))
            settings = short("flux", height=size, width=32, latents=None, true_cfg_scale=2.0)
            model.run_with_hooks(fwd_hooks=[hook], negative_prompt="a dog", **settings)
        blocks = 2 * 2 * model.n_blocks  # two steps, two calls in each
        assert len(read) == 2 and read[0] != read[1]
        assert seen == [read[0]] * blocks + [read[1]] * blocks

    def test_again_where_ids_change(self) -> None:
        model, read = self.counted(shared_pipe("flux").transformer)
        given = dict(evaluation_of("flux"))
        seen = []
        with (
            torch.no_grad(),
            model.hooks([("blocks.0.attn.img.hook_z", lambda _v, hook: seen.append(hook.grid))]),
        ):
            for _ in range(2):
                model.denoiser(**given)
            given["img_ids"] = given["img_ids"].clone()
            model.denoiser(**given)
            given["img_ids"][:, 1] += 3
            model.denoiser(**given)
        height, width = seen[0]
        assert seen == [(height, width)] * 3 + [(height + 3, width)]
        assert len(read) == 3

    def test_once_in_an_evaluation_in_inference_mode(self) -> None:
        model, read = self.counted(shared_pipe("flux"))
        hook = ("blocks.*.attn.img.hook_z", lambda _value, hook: hook.grid and None)
        with torch.inference_mode():
            model.run_with_hooks(fwd_hooks=[hook], **short("flux"))
        assert len(read) == 2


@pytest.mark.parametrize(
    ("family", "height", "width", "grids"),
    [
        ("sd", 72, 40, {0: (18, 10), 2: (9, 5)}),
        ("sd", 56, 72, {0: (14, 18), 2: (7, 9)}),
        ("sd3", 48, 96, {0: (6, 12)}),
        ("flux", 64, 192, {0: (4, 12)}),
    ],
)
def test_grids_are_those_of_the_latents(
    family: str, height: int, width: int, grids: dict[int, tuple[int, int]]
) -> None:
    settings = _plain(family, steps=1, height=height, width=width)
    del settings["latents"]
    pipe = shared_pipe(family)
    scale = pipe.vae_scale_factor
    for block in grids:
        name = Site(f"blocks.{block}.img.hook_resid_pre", branch="cond")
        log, _ = logged(pipe, name, **settings)
        grid = log.facts[0][2]
        assert grid[0] * grid[1] == log.shapes[0][1]
        assert grid[0] / grid[1] == pytest.approx(height / width, rel=0.15), (scale, grid)


def test_grids_of_odd_latents_round_up_where_a_unet_halves() -> None:
    given = dict(evaluation_of("sd"))
    given["sample"] = torch.randn(2, 4, 13, 7)
    model, log = HookedDiffusion(shared_pipe("sd").unet), []

    def note(activation: Tensor, hook: HookContext) -> None:
        log.append((hook.point.level if hook.point else 0, hook.grid, activation.shape[1]))

    with torch.no_grad(), model.hooks([("blocks.*.img.hook_resid_pre", note)]):
        model.denoiser(**given)
    assert {entry[:2] for entry in log} == {(0, (13, 7)), (1, (7, 4))}
    assert all(grid[0] * grid[1] == tokens for _, grid, tokens in log)


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
def test_words_are_the_tokens_that_spell_them(family: str) -> None:
    pipe = shared_pipe(family)
    model, prompt = HookedDiffusion(pipe), "a red cat on the glass table, a red cat"
    tokenizers = {
        "sd": [(pipe.tokenizer, 0)],
        "sdxl": [(pipe.tokenizer, 0)],
        "sd3": [(pipe.tokenizer, 0), (getattr(pipe, "tokenizer_3", None), 77)],
        "flux": [(getattr(pipe, "tokenizer_2", None), 0)],
    }[family]
    for word, count in (("cat", 2), ("glass", 1), ("red cat", 2), ("table", 1)):
        found = model.words(prompt, word)
        spelled = ""
        for tokenizer, start in tokenizers:
            ids = tokenizer(prompt).input_ids
            mine = [index - start for index in found if start <= index < start + len(ids)]
            text = tokenizer.decode([ids[index] for index in mine]).lower().replace(" ", "")
            assert text == word.replace(" ", "") * count, (text, word)
            spelled += text
        assert spelled and list(found) == sorted(set(found))


def test_a_word_of_the_prompt_selects_its_columns() -> None:
    model = HookedDiffusion(shared_pipe("sd3"))
    name, settings = "blocks.0.attn.hook_pattern", short("sd3", steps=1)
    indices = model.words(settings["prompt"], "cat")
    _, word = model.run_with_cache(names_filter=Site(name, query="img", key="cat"), **settings)
    _, same = model.run_with_cache(
        names_filter=Site(name, query="img", key=("txt", list(indices))), **settings
    )
    _, whole = model.run_with_cache(names_filter=name, **settings)
    assert torch.equal(word[name], same[name])
    columns = [64 + index for index in indices]
    torch.testing.assert_close(word[name], whole[name][..., :64, :][..., columns])


def test_steps_of_a_site_are_the_only_ones_that_fire() -> None:
    log, _ = logged(
        shared_pipe("sd"),
        Site("hook_latents", steps=[1, 3], branch="uncond"),
        prompt="a cat",
        num_inference_steps=4,
        height=32,
        width=32,
    )
    assert log.steps == [1, 3] and set(log.branches) == {"uncond"}


@pytest.mark.parametrize(
    "kind", ["StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"]
)
def test_other_pipelines_of_the_same_components_pass_through(kind: str) -> None:
    import diffusers
    from PIL import Image

    parts = fresh_pipe("sd").components
    pipe = getattr(diffusers, kind)(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    image = Image.new("RGB", (64, 64), (200, 30, 30))
    settings: dict[str, Any] = {"image": image, "strength": 0.5, "num_inference_steps": 4}
    if "Inpaint" in kind:
        settings |= {"mask_image": Image.new("L", (64, 64), 255), "height": 64, "width": 64}
    plain = pipe("a cat", generator=[torch.Generator().manual_seed(0)], **settings).images[0]
    model, log = HookedDiffusion(pipe), Log()
    out = model.run_with_hooks("a cat", fwd_hooks=[("hook_latents", log)], **settings)
    assert out.image.tobytes() == plain.tobytes()
    assert log.steps[0] == 0 and max(log.steps) + 1 == out.made_by.steps
    assert out.latents is not None and out.latents.shape[1] == 4


def test_loops_of_the_users_own_count_steps_and_name_their_branches() -> None:
    pipe = fresh_pipe("sd")
    model, given, log = HookedDiffusion(pipe), evaluation_of("sd"), Log()
    pipe.scheduler.set_timesteps(3)
    sample = torch.randn(1, 4, 16, 16)
    with torch.no_grad(), model.hooks([("hook_latents", log)], branches=("uncond", "cond")):
        for time in pipe.scheduler.timesteps:
            pred = pipe.unet(
                torch.cat([sample] * 2), time, encoder_hidden_states=given["encoder_hidden_states"]
            ).sample
            sample = pipe.scheduler.step(pred[1:], time, sample).prev_sample
    assert log.branches == ["uncond", "cond"] * 4
    assert log.steps == [step for step in range(4) for _ in range(2)]


def test_a_loop_after_a_run_starts_from_step_zero() -> None:
    pipe = fresh_pipe("sd")
    model, given, log = HookedDiffusion(pipe), evaluation_of("sd"), Log()
    model.run_with_hooks("a cat", fwd_hooks=[("hook_latents", Log())], num_inference_steps=2)
    with torch.no_grad(), model.hooks([("hook_latents", log)]):
        pipe.unet(**given)
    assert log.steps == [0] and log.branches == ["cond"] and log.shapes[0][0] == 2


def test_the_users_step_callbacks_pass_through() -> None:
    from diffusers.callbacks import SDCFGCutoffCallback

    model, seen = HookedDiffusion(shared_pipe("sd")), []

    def callback(_pipe: Any, step: int, _time: Any, tensors: dict) -> dict:
        seen.append(sorted(tensors))
        return {"latents": tensors["latents"] * 0} if step == 1 else {}

    settings = short("sd", callback_on_step_end=callback)
    settings["callback_on_step_end_tensor_inputs"] = ["prompt_embeds"]
    out = model(**settings)
    assert all("prompt_embeds" in names for names in seen) and len(seen) == 3
    assert not torch.equal(latents_of(out), latents_of(model(**short("sd"))))
    cutoff: dict[str, Any] = {"callback_on_step_end": SDCFGCutoffCallback(cutoff_step_ratio=0.5)}
    plain = shared_pipe("sd")(**short("sd", **cutoff)).images
    assert torch.equal(latents_of(model(**short("sd", **cutoff))), plain)


def test_golden_latents_are_what_a_run_records() -> None:
    settings = golden("sd").settings(num_inference_steps=2)
    out = HookedDiffusion(shared_pipe("sd"))(**settings)
    made = out.made_by
    assert made.pipeline == "StableDiffusionPipeline" and made.scheduler == "PNDMScheduler"
    assert made.steps == 3 and made.seeds == (0,) and made.hooks == () and made.versions["torch"]
    assert "num_inference_steps=2" in repr(made.run) and "<tensor (1, 4, 16, 16)>" in repr(made.run)
    assert set(made.as_dict()) >= {"run", "seeds", "scheduler_config", "versions"}
    assert "1 image, latents (1, 4, 16, 16)" in repr(out) and out.image is out.images[0]


def test_calls_that_a_pipeline_does_not_name_are_told_apart_by_their_order() -> None:
    from diffusers import FluxImg2ImgPipeline
    from PIL import Image

    pipe = FluxImg2ImgPipeline(**fresh_pipe("flux").components)
    pipe.set_progress_bar_config(disable=True)
    settings: dict[str, Any] = {
        "image": Image.new("RGB", (64, 64), (200, 30, 30)),
        "strength": 0.5,
        "num_inference_steps": 4,
        "true_cfg_scale": 4.0,
        "negative_prompt": "a blue dog",
        "height": 64,
        "width": 64,
    }
    model, armed = HookedDiffusion(pipe), [True]

    def interrupt(_activation: Tensor, hook: HookContext) -> None:
        if armed and hook.branch == "cond":
            armed.clear()
            raise KeyboardInterrupt

    with model.hooks([("blocks.0.attn.img.hook_q", interrupt)]):
        with pytest.raises(KeyboardInterrupt):
            model("a red cat", output_type="latent", **settings)
        log = Log()
        with model.hooks([("hook_latents", log)]):
            model("a red cat", output_type="latent", **settings)
    expected = [(step, branch) for step in range(2) for branch in ("cond", "uncond")]
    assert list(zip(log.steps, log.branches, strict=True)) == expected
    assert log.words[0] == ["a", "cat", "red"] and log.words[1] == ["a", "blue", "dog"]
    once, _ = logged(pipe, "hook_latents", prompt="a cat", **{**settings, "true_cfg_scale": 1.0})
    assert list(zip(once.steps, once.branches, strict=True)) == [(0, "cond"), (1, "cond")]


def test_prompts_of_other_calls_are_not_taken_for_those_of_the_next_run() -> None:
    pipe, log, armed = fresh_pipe("flux"), Log(), [True]
    model = HookedDiffusion(pipe)

    def fail_once(_activation: Tensor, hook: HookContext) -> None:
        if armed[0]:
            armed[0] = False
            raise ValueError("failed on purpose")

    settings = short("flux", steps=1)
    del settings["prompt"]
    model.add_hook("hook_latents", fail_once)
    model.add_hook("hook_latents", log)
    with pytest.raises(ValueError, match="failed on purpose"):
        model("an old house", **settings)
    model("a red cat", **settings)
    assert log.words == [["a", "cat", "red"]] and log.branches == ["cond"]
    with pytest.raises((RuntimeError, ValueError)):
        model("an old house", **{**settings, "latents": torch.zeros(1, 3, 5)})
    model("a red cat", **settings)
    assert log.words[-1] == ["a", "cat", "red"] and set(log.branches) == {"cond"}
    pipe.encode_prompt("an old house", None)
    model("a red cat", **settings)
    assert log.words[-1] == ["a", "cat", "red"] and set(log.branches) == {"cond"}
    embeds, pooled, _ = pipe.encode_prompt("an old house", None)
    count = len(log.words)
    model(prompt_embeds=embeds, pooled_prompt_embeds=pooled, **settings)
    assert len(log.words) == count and log.branches[-1] == "cond"
    model.reset_hooks()


@pytest.mark.parametrize(("family", "name"), [("flux", "prompt_2"), ("sd3", "prompt_3")])
def test_a_prompt_of_its_own_fills_its_part_of_the_text_stream(family: str, name: str) -> None:
    pipe, log = fresh_pipe(family), Log()
    model = HookedDiffusion(pipe)
    start = {"flux": 0, "sd3": 77}[family]
    settings = {**short(family, steps=1, guided=False), "prompt": "a red cat"}
    found: dict[str, tuple[int, ...]] = {}

    def read(_activation: Tensor, hook: HookContext) -> None:
        found.update(hook.words)

    hooks: list[Any] = [("hook_latents", read), ("hook_latents", log)]
    model.run_with_hooks(fwd_hooks=hooks, **settings)
    if family == "sd3":
        assert min(found["cat"]) < start <= max(found["cat"])
    found.clear()
    model.run_with_hooks(fwd_hooks=hooks, **{**settings, name: "the dog sees a glass table"})
    same = model.words("the dog sees a glass table", "table")
    assert found["table"] == tuple(index for index in same if index >= start)
    assert found.get("cat", (0,)) == tuple(
        index for index in model.words("a red cat", "cat") if index < start
    ) or (family == "flux" and "cat" not in found)


def _pag(**more: Any) -> Any:
    from diffusers import StableDiffusionPAGPipeline

    pipe = StableDiffusionPAGPipeline(
        **fresh_pipe("sd").components, requires_safety_checker=False, pag_applied_layers=["mid"]
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _embedded(pipe: Any, prompts: list[str]) -> dict[str, Any]:
    with torch.no_grad():
        cond, uncond = pipe.encode_prompt(prompts, "cpu", 1, True, ["park"] * len(prompts))
    return {"prompt_embeds": cond, "negative_prompt_embeds": uncond}


@pytest.mark.parametrize("embedded", [False, True])
@pytest.mark.parametrize(("guidance", "names"), [(5.0, ["uncond", "cond"]), (0.0, ["cond"])])
def test_perturbed_attention_has_a_branch_of_its_own(
    embedded: bool, guidance: float, names: list[str]
) -> None:
    pipe, prompts = _pag(), ["a cat", "a dog"]
    given = _embedded(pipe, prompts) if embedded else {"prompt": prompts}
    known = _embedded(pipe, prompts)
    seen: dict[str, Tensor] = {}

    def keep(value: Tensor, hook: HookContext) -> None:
        seen[hook.branch] = value

    settings = {"num_inference_steps": 1, "output_type": "latent", "guidance_scale": guidance}
    HookedDiffusion(pipe).run_with_hooks(fwd_hooks=[("hook_text_emb", keep)], **given, **settings)
    assert list(seen) == [*names, "perturbed"]
    for branch in ("cond", "perturbed"):
        torch.testing.assert_close(seen[branch], known["prompt_embeds"])


@pytest.mark.parametrize(
    ("kind", "refusal"),
    [
        ("StableDiffusionPanoramaPipeline", "does not hold just the branches.*branches="),
        (
            "StableDiffusionSAGPipeline",
            "evaluates its denoiser 2 times in step 0, .* evaluates it once",
        ),
    ],
)
@pytest.mark.parametrize("embedded", [False, True])
def test_batches_that_hold_other_rows_than_the_branches_are_refused(
    kind: str, refusal: str, embedded: bool
) -> None:
    import diffusers

    parts = fresh_pipe("sd").components
    parts["scheduler"] = diffusers.DDIMScheduler.from_config(parts["scheduler"].config)
    pipe = getattr(diffusers, kind)(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    settings: dict[str, Any] = {"num_inference_steps": 1, "output_type": "latent"}
    settings |= {"height": 64, "width": 128} if "Panorama" in kind else {}
    settings |= _embedded(pipe, ["a cat"]) if embedded else {"prompt": "a cat"}
    model = HookedDiffusion(pipe)
    with pytest.raises(EngineError, match=refusal):
        model.run_with_hooks(fwd_hooks=[("hook_latents", Log())], **settings)


def test_words_are_those_of_the_prompt_as_textual_inversion_writes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipe = fresh_pipe("sd")
    model = HookedDiffusion(pipe)
    before = model.words("a toy cat", "cat")

    def several(prompt: str, tokenizer: Any) -> str:
        return prompt.replace("toy", "toy toy toy")

    monkeypatch.setattr(pipe, "maybe_convert_prompt", several, raising=False)
    after = model.words("a toy cat", "cat")
    assert after == HookedDiffusion(shared_pipe("sd")).words("a toy toy toy cat", "cat")
    assert min(after) > max(before)


@pytest.mark.parametrize("family", ["sd", "sd3", "flux"])
def test_an_occurrence_of_a_word_is_found_apart(family: str) -> None:
    model, prompt = HookedDiffusion(shared_pipe(family)), "a cat and a Cat and a cat"
    apart = [model.words(prompt, "cat", occurrence=number) for number in range(3)]
    assert sorted(place for one in apart for place in one) == list(model.words(prompt, "cat"))
    assert model.words(prompt, "cat", occurrence=-1) == apart[2]
    assert all(apart) and len(set(apart)) == 3
    with pytest.raises(WordError, match="occurrence 3 of 'cat' was asked for, it is 3 times"):
        model.words(prompt, "cat", occurrence=3)


def test_tokens_of_a_prompt_carry_their_characters() -> None:
    tokens = HookedDiffusion(shared_pipe("sd")).prompt_tokens("a red cat")
    labels = [tokens.label(position) for position in tokens.positions]
    assert labels[0] == labels[-1] == "" and "".join(labels) == "aredcat"
    assert tokens.positions == tuple(range(len(labels)))
