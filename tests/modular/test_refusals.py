"""What modular pipelines cannot do under the wrapper is refused by name."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch

from diffusion_lens import HookedDiffusion, Site
from diffusion_lens.errors import EngineError, RunError, UnsupportedModelError, WordError
from tests.modular.pipelines import PROMPT, generator, guided, made, put_together, settings, shared
from tests.pipelines import fresh_pipe, latents_of
from tests.tiny_pipelines import tiny_pipeline


def nothing(_activation: Any, _hook: Any) -> None:
    return None


HOOKS = [("mid.hook_h", nothing)]


def empty(blocks: str) -> Any:
    with contextlib.redirect_stderr(io.StringIO()):
        return getattr(diffusers, blocks)().init_pipeline()


def test_a_pipeline_without_components_is_refused() -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"has no unet, scheduler yet; .*load_components"
    ):
        HookedDiffusion(empty("StableDiffusionXLAutoBlocks"))


@pytest.mark.parametrize("missing", ["unet", "scheduler", "guider"])
def test_a_missing_part_is_named(missing: str) -> None:
    pipe = put_together(shared("sdxl")[0], "StableDiffusionXLAutoBlocks")
    setattr(pipe, missing, None)
    with pytest.raises(UnsupportedModelError, match=rf"has no {missing} yet"):
        HookedDiffusion(pipe)


def test_blocks_that_do_not_denoise_are_refused() -> None:
    blocks = diffusers.StableDiffusionXLAutoBlocks().sub_blocks["text_encoder"]
    pipe = put_together(shared("sdxl")[0], blocks)
    with pytest.raises(UnsupportedModelError, match=r"no block of this .* denoises: its comp"):
        HookedDiffusion(pipe)


def test_settings_that_no_block_takes_are_refused() -> None:
    model = HookedDiffusion(shared("sdxl")[1])
    with pytest.raises(
        RunError, match=r"guidance_scale'. Its guider has the scale: `pipe.update_co"
    ):
        model(PROMPT, guidance_scale=3.0)
    with pytest.raises(RunError, match=r"takes no argument 'hight'. Closest: height"):
        model(PROMPT, hight=64)
    flux = HookedDiffusion(shared("flux")[1])
    with pytest.raises(RunError, match="It has no guider, so that nothing is guided"):
        flux(PROMPT, true_cfg_scale=3.0)


def test_what_denoise_cannot_do_exactly_is_refused() -> None:
    pipe = shared("sdxl")[1]
    guided(pipe)
    model, given = HookedDiffusion(pipe), settings("sdxl")
    latents = torch.zeros(1, 4, 16, 16)
    with pytest.raises(RunError, match=r"under torch\.no_grad, without gradients"):
        model.denoise(latents.clone().requires_grad_(), prompt=PROMPT, step=0, **given)
    with (
        model.hooks(bwd_hooks=HOOKS),
        pytest.raises(RunError, match=r"under torch\.no_grad, without gradients"),
    ):
        model.denoise(latents, prompt=PROMPT, step=0, **given)
    with pytest.raises(RunError, match="guides by the step, which a noise_level= has not"):
        model.denoise(latents, prompt=PROMPT, noise_level=0.5, **given)
    with pytest.raises(RunError, match=r"with denoising_end= begins or ends its loop elsewhere"):
        model.denoise(latents, prompt=PROMPT, step=0, denoising_end=0.5, **given)
    with pytest.raises(
        RunError, match=r"latents of shape \(1, 4, 8, 8\) were given where the loop"
    ):
        model.denoise(torch.zeros(1, 4, 8, 8), prompt=PROMPT, step=0, **given)
    with pytest.raises(RunError, match=r"latents of dtype torch\.float64 were given"):
        model.denoise(latents.double(), prompt=PROMPT, step=0, **given)
    with pytest.raises(RunError, match="step 5 does not exist"):
        model.denoise(latents, prompt=PROMPT, step=5, **given)


def test_denoise_at_a_noise_level_needs_no_guider() -> None:
    classic, pipe = shared("flux")
    latents = torch.randn(1, 4, 16, generator=generator())
    given = {"noise_level": 0.5, "prompt": PROMPT, "height": 32, "width": 32}
    more = {"max_sequence_length": 32, "guidance_scale": 3.5}
    found, expected = (
        HookedDiffusion(one).denoise(latents, **given, **more) for one in (pipe, classic)
    )
    assert torch.equal(found.cond, expected.cond)
    assert found.timestep == expected.timestep


def test_a_family_without_a_known_classic_pipeline_runs_and_says_what_it_cannot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from diffusers.modular_pipelines.krea2 import encoders

    classic = tiny_pipeline("krea2")
    template = "_PROMPT_TEMPLATE_ENCODE_"
    for constant, value in {
        "KREA2_TEXT_ENCODER_SELECT_LAYERS": classic.text_encoder_select_layers,
        f"{template}START_IDX": classic.prompt_template_encode_start_idx,
        f"{template}NUM_SUFFIX_TOKENS": classic.prompt_template_encode_num_suffix_tokens,
    }.items():
        monkeypatch.setattr(encoders, constant, value)
    pipe = put_together(classic, "Krea2AutoBlocks")
    guided(pipe)
    model, seen = HookedDiffusion(pipe), []
    given: dict[str, Any] = {"height": 16, "width": 24, "max_sequence_length": 60}
    given["num_inference_steps"] = 2
    hooks = [("hook_noise_pred", lambda _, hook: seen.append((hook.step, hook.branch)))]
    out = model.run_with_hooks(PROMPT, fwd_hooks=hooks, **given)
    assert seen == [(step, branch) for step in range(2) for branch in ("cond", "uncond")]
    with pytest.raises(RunError, match="decode_latents is not described for Krea2ModularPipeline"):
        model.decode_latents(latents_of(out))
    with pytest.raises(WordError, match="what Krea2ModularPipeline makes of a prompt is not desc"):
        model.words(PROMPT, "cat")
    with pytest.raises(RunError, match="denoise is not described for Krea2ModularPipeline"):
        model.denoise(latents_of(out), prompt=PROMPT, step=0, **given)


def test_a_block_that_is_called_by_hand_is_refused() -> None:
    pipe = shared("sdxl")[1]
    guided(pipe)
    state = pipe(prompt=PROMPT, generator=generator(), **settings("sdxl"))
    loop = pipe._blocks.sub_blocks["denoise"]
    with (
        HookedDiffusion(pipe).hooks(HOOKS),
        pytest.raises(EngineError, match="outside a call of the"),
    ):
        loop(pipe, state)


def test_another_pipeline_of_the_same_denoiser_is_refused() -> None:
    classic, pipe = shared("sdxl")
    guided(pipe)
    other = put_together(classic, "StableDiffusionXLAutoBlocks")
    with (
        HookedDiffusion(pipe).hooks(HOOKS),
        pytest.raises(
            EngineError, match="a StableDiffusionXLModularPipeline runs the hooked denoiser"
        ),
    ):
        other(prompt=PROMPT, generator=generator(), **settings("sdxl"))


def own_denoiser(run: Callable[[Any, Any, Any], Any]) -> Any:
    """A pipeline whose block that denoises is the user's."""
    pipe = made("sdxl")[1]
    guided(pipe)
    loop = next(
        block for block in blocks_of(pipe) if type(block).__name__ == "StableDiffusionXLDenoiseStep"
    )
    kind = type(loop.sub_blocks["denoiser"])

    class Mine(kind):
        def __call__(self, components: Any, block_state: Any, i: int, t: Any) -> Any:
            def evaluate(embeds: Any = None, pooled: Any = None) -> Any:
                known = {
                    "text_embeds": block_state.pooled_prompt_embeds if pooled is None else pooled,
                    "time_ids": block_state.add_time_ids,
                }
                latents = block_state.scaled_latents
                embeds = block_state.prompt_embeds if embeds is None else embeds
                if len(embeds) > len(latents):
                    latents = torch.cat([latents] * 2)
                    known = {name: torch.cat([value] * 2) for name, value in known.items()}
                return components.unet(
                    latents, t, encoder_hidden_states=embeds, added_cond_kwargs=known
                )[0]

            block_state.noise_pred = run(components, block_state, evaluate)
            return components, block_state

    loop.sub_blocks["denoiser"] = Mine()
    return pipe


def blocks_of(pipe: Any) -> list[Any]:
    found = [pipe._blocks]
    for block in found:
        found += block.sub_blocks.values()
    return found


def test_a_block_of_the_users_that_evaluates_once_is_followed() -> None:
    pipe, seen = own_denoiser(lambda _components, _state, evaluate: evaluate()), []
    hooks = [("mid.hook_h", lambda _, hook: seen.append((hook.step, hook.branch)))]
    HookedDiffusion(pipe).run_with_hooks(PROMPT, fwd_hooks=hooks, **settings("sdxl", steps=3))
    assert seen == [(0, "cond"), (1, "cond"), (2, "cond")]


def test_a_block_that_evaluates_twice_without_a_guider_is_refused() -> None:
    pipe = own_denoiser(lambda _components, _state, evaluate: (evaluate(), evaluate())[1])
    with pytest.raises(
        EngineError, match="evaluates its denoiser 2 times in step 0 without a guider"
    ):
        HookedDiffusion(pipe).run_with_hooks(PROMPT, fwd_hooks=HOOKS, **settings("sdxl"))


def test_a_block_that_puts_its_branches_into_one_batch_is_refused() -> None:
    def both(_components: Any, state: Any, evaluate: Any) -> Any:
        embeds = torch.cat([state.negative_prompt_embeds, state.prompt_embeds])
        return evaluate(embeds).chunk(2)[1]

    pipe = own_denoiser(both)
    with pytest.raises(
        EngineError, match="a batch of 2 for 1 samples does not hold just the branches"
    ):
        HookedDiffusion(pipe).run_with_hooks(PROMPT, fwd_hooks=HOOKS, **settings("sdxl"))
    seen = []
    with HookedDiffusion(pipe).hooks(
        [("mid.hook_h", lambda a, hook: seen.append((hook.branch, len(a))))],
        branches=("uncond", "cond"),
    ):
        pipe(prompt=PROMPT, generator=generator(), **settings("sdxl", steps=1))
    assert seen == [("uncond", 1), ("cond", 1)]


def test_an_evaluation_beside_those_of_the_guider_is_refused() -> None:
    def beside(components: Any, state: Any, evaluate: Any) -> Any:
        fields = {"embeds": (state.prompt_embeds, state.negative_prompt_embeds)}
        components.guider.set_state(0, 2, None)
        components.guider.prepare_inputs(fields)
        return evaluate()

    pipe = own_denoiser(beside)
    with pytest.raises(EngineError, match="evaluates its denoiser beside the batches"):
        HookedDiffusion(pipe).run_with_hooks(PROMPT, fwd_hooks=HOOKS, **settings("sdxl"))


@pytest.mark.parametrize("scheduler", ["HeunDiscreteScheduler", "PNDMScheduler"])
def test_steps_are_the_schedulers(scheduler: str) -> None:
    """Of which these make more than they are asked for, the further ones without guidance."""
    classic = fresh_pipe("sdxl")
    kind = getattr(diffusers, scheduler)
    more = {"skip_prk_steps": True} if scheduler == "PNDMScheduler" else {}
    classic.scheduler = kind.from_config(classic.scheduler.config, **more)
    pipe = put_together(classic, "StableDiffusionXLAutoBlocks")
    guided(pipe)
    original = kind.step
    seen: list[tuple[int, str]] = []
    expected: list[tuple[int, str]] = []
    asked = 3

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        number = len({at for at, _ in expected})
        expected.extend((number, one) for one in ("cond", "uncond")[: 2 if number < asked else 1])
        return original(self, *args, **kwargs)

    hooks = [("mid.hook_h", lambda _, hook: seen.append((hook.step, hook.branch)))]
    kind.step = step
    try:
        out = HookedDiffusion(pipe).run_with_hooks(
            PROMPT, fwd_hooks=hooks, **settings("sdxl", steps=asked)
        )
    finally:
        kind.step = original
    assert seen == expected
    assert out.made_by.steps == seen[-1][0] + 1 > asked


def test_the_latents_are_those_with_which_the_loop_is_left() -> None:
    """As where an inpainting loop puts the given image back after each step."""
    pipe = made("sdxl")[1]
    guided(pipe)
    loop = next(
        block for block in blocks_of(pipe) if type(block).__name__ == "StableDiffusionXLDenoiseStep"
    )
    after = loop.sub_blocks["after_denoiser"]

    class Doubled(type(after)):
        def __call__(self, components: Any, block_state: Any, i: int, t: Any) -> Any:
            components, block_state = super().__call__(components, block_state, i=i, t=t)
            block_state.latents = block_state.latents * 2
            return components, block_state

    loop.sub_blocks["after_denoiser"] = Doubled()
    out, cache = HookedDiffusion(pipe).run_with_cache(PROMPT, seed=0, **settings("sdxl"))
    assert cache.steps == [0, 1]  # a block of the user's steps the scheduler
    state = pipe(prompt=PROMPT, generator=generator(), **settings("sdxl"))
    assert torch.equal(latents_of(out), state.get("latents"))


def test_hooks_come_off_after_an_error_in_a_block() -> None:
    pipe = shared("sdxl")[1]
    guided(pipe)
    model = HookedDiffusion(pipe)
    with pytest.raises(Exception, match="divisible by 4"):
        model.run_with_hooks(PROMPT, fwd_hooks=HOOKS, **settings("sdxl", height=63))
    out, cache = model.run_with_cache(
        PROMPT, seed=0, names_filter=Site("mid.hook_h"), **settings("sdxl")
    )
    assert cache.steps == [0, 1]
    state = pipe(prompt=PROMPT, generator=generator(), **settings("sdxl"))
    assert torch.equal(latents_of(out), state.get("latents"))
