"""What lives how long: pauses, contexts that end oddly, parts replaced, observers, graphs."""

from __future__ import annotations

import contextlib
import copy
import gc
import threading
import weakref
from typing import Any
from unittest import mock

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn

from diffusion_lens import HookContext, HookedDiffusion, read_only
from diffusion_lens.engine.observing import _TABLES
from diffusion_lens.errors import (
    DiffusionLensError,
    EngineError,
    HookNeverFiredError,
    NestedRunError,
)
from tests.pipelines import evaluation_of, fresh_pipe, latents_of, short, traces

RESIDUAL = "blocks.0.img.hook_resid_post"
Z = "blocks.0.cross_attn.img.hook_z"


class Counting:
    """A hook that doubles, and counts."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def __call__(self, value: Tensor, hook: HookContext) -> Tensor:
        self.steps.append(hook.step)
        return 2 * value


@read_only
def look(_value: Tensor, _hook: HookContext) -> None: ...


def torch_hooks(model: HookedDiffusion) -> int:
    return traces(model.denoiser)["torch hooks"]


def arguments(family: str = "sd") -> dict[str, Any]:
    names = ("sample", "timestep", "encoder_hidden_states")
    return {name: value for name, value in evaluation_of(family).items() if name in names}


# -- pauses -----------------------------------------------------------------------------------


def test_hooks_put_on_in_a_pause_are_the_only_ones_and_the_others_come_back_once() -> None:
    model, edit, seen = HookedDiffusion(fresh_pipe("sd")), Counting(), Counting()
    with model.hooks([(RESIDUAL, edit)]):
        before = latents_of(model(**short("sd")))
        count = len(edit.steps)
        with model.paused(), model.hooks([(RESIDUAL, seen)]):
            model.denoise(torch.zeros_like(before), prompt="a cat", step=0, num_inference_steps=2)
        assert seen.steps and len(edit.steps) == count
        edit.steps.clear()
        assert torch.equal(latents_of(model(**short("sd"))), before)
        assert len(edit.steps) == count
    assert torch_hooks(model) == 0
    model.pipe(**short("sd"))
    assert len(edit.steps) == count


def test_a_run_in_a_pause_is_a_plain_run() -> None:
    model, edit = HookedDiffusion(fresh_pipe("sd")), Counting()
    plain = latents_of(model(**short("sd")))
    with model.hooks([(RESIDUAL, edit)]):
        with model.paused():
            assert torch.equal(latents_of(model(**short("sd"))), plain)
            assert not edit.steps
        model(**short("sd"))
    assert edit.steps


def test_a_context_that_is_left_in_a_pause_does_not_come_back() -> None:
    model, edit, outer = HookedDiffusion(fresh_pipe("sd")), Counting(), contextlib.ExitStack()
    outer.enter_context(model.hooks([(RESIDUAL, edit)]))
    with model.paused():
        outer.close()
    model.pipe(**short("sd"))
    assert not edit.steps and torch_hooks(model) == 0 and not model.wiring.registrations


# -- contexts that end oddly ------------------------------------------------------------------


def test_reset_hooks_leaves_the_hooks_of_open_contexts() -> None:
    model, edit = HookedDiffusion(fresh_pipe("sd")), Counting()
    with model.hooks([(RESIDUAL, edit)]):
        model.add_hook(RESIDUAL, look)
        model.reset_hooks()
        assert len(model.wiring.registrations) == 1
        model(**short("sd"))
    assert edit.steps and not model.wiring.registrations


def test_a_hook_that_went_with_its_streams_is_no_silent_one() -> None:
    model, point = HookedDiffusion(fresh_pipe("sd3")), "blocks.0.attn.concept.hook_z"
    streams, outer = model.concept_streams(["cat"]), contextlib.ExitStack()
    streams.__enter__()
    outer.enter_context(model.hooks([(point, look)]))
    streams.__exit__(None, None, None)
    model.pipe(**short("sd3", steps=1))
    with pytest.raises(HookNeverFiredError, match="was taken off before it saw a value"):
        outer.close()


def test_a_context_that_cannot_be_left_leaves_nothing_behind() -> None:
    model = HookedDiffusion(fresh_pipe("sd"))
    model.denoiser.extra = nn.Identity()
    model.add_hook("native:extra", look)
    with pytest.raises((DiffusionLensError, AttributeError)), model.hooks([(RESIDUAL, look)]):
        del model.denoiser.extra
    assert torch_hooks(model) == 0 and not model.wiring.registrations
    model.pipe(**short("sd", steps=1))


def test_a_context_that_is_left_in_a_callback_is_over() -> None:
    model, edit, outer = HookedDiffusion(fresh_pipe("sd")), Counting(), contextlib.ExitStack()
    outer.enter_context(model.hooks([(RESIDUAL, edit)]))
    refused = []

    def callback(_pipe: Any, step: int, _time: Any, _tensors: dict) -> dict:
        if step == 0:
            try:
                outer.close()
            except NestedRunError as error:
                refused.append(error)
        return {}

    model.pipe(**short("sd", steps=3, callback_on_step_end=callback))
    assert refused and set(edit.steps) == {0}
    assert torch_hooks(model) == 0 and not model.wiring.registrations


# -- parts ------------------------------------------------------------------------------------


def test_a_module_put_in_anothers_place_is_hooked() -> None:
    model, edit = HookedDiffusion(fresh_pipe("sd")), Counting()
    model.add_hook(Z, edit)
    model.pipe(**short("sd", steps=1))
    count = len(edit.steps)
    attention = next(
        part for name, part in model.denoiser.named_modules() if name.endswith(".attn2")
    )
    attention.to_out[0] = copy.deepcopy(attention.to_out[0])
    model.pipe(**short("sd", steps=1))
    assert count and len(edit.steps) == 2 * count
    model.reset_hooks()


def test_the_stance_of_compiled_models_lasts_as_long_as_any_hook() -> None:
    first, second = HookedDiffusion(fresh_pipe("sd")), HookedDiffusion(fresh_pipe("flux"))

    def stance() -> str:
        return torch._dynamo.eval_frame._stance.stance

    before = stance()
    first.add_hook(RESIDUAL, look)
    second.add_hook(RESIDUAL, look)
    first.reset_hooks()
    assert stance() == "force_eager"
    second.reset_hooks()
    assert stance() == before


def test_a_model_that_goes_out_of_scope_with_hooks_on_is_freed() -> None:
    model = HookedDiffusion(fresh_pipe("sd"))
    kind, gone = type(model.pipe), weakref.ref(model.pipe)
    model.add_hook(RESIDUAL, look)
    del model
    gc.collect()
    assert gone() is None
    assert not any(owner is kind for owner, _ in _TABLES)
    assert not hasattr(kind.__call__, "is_observed")


# -- who steps --------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["callback", "hook"])
def test_a_preview_by_the_scheduler_is_no_step(where: str) -> None:
    from diffusers import DDIMScheduler

    pipe = fresh_pipe("sd")
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    model, previews = HookedDiffusion(pipe), []

    def preview(prediction: Tensor, time: Any) -> None:
        previews.append(pipe.scheduler.step(prediction, int(time), prediction))

    def callback(_pipe: Any, _step: int, time: Any, tensors: dict) -> dict:
        if where == "callback":
            preview(tensors["latents"], time)
        return {}

    def hook(prediction: Tensor, hook: HookContext) -> None:
        if where == "hook":
            preview(prediction, hook.timestep)

    settings = short("sd", steps=4, callback_on_step_end=callback)
    plain = latents_of(model(**short("sd", steps=4)))
    with model.hooks([("hook_noise_pred", hook)]):
        out, cache = model.run_with_cache(names_filter="hook_noise_pred", **settings)
    assert previews and cache.steps == [0, 1, 2, 3]
    assert torch.equal(latents_of(out), plain)


def test_another_pipeline_of_the_denoiser_in_a_callback_is_refused() -> None:
    pipe = fresh_pipe("flux")
    parts = {**pipe.components, "scheduler": copy.deepcopy(pipe.scheduler)}
    other = type(pipe)(**parts)
    other.set_progress_bar_config(disable=True)

    def callback(_pipe: Any, _step: int, _time: Any, _tensors: dict) -> dict:
        other(**short("flux"))
        return {}

    model = HookedDiffusion(pipe)
    with model.hooks([(RESIDUAL, look)]), pytest.raises(EngineError, match="runs the hooked"):
        pipe(**short("flux", callback_on_step_end=callback))


def test_a_method_that_was_patched_and_put_back_is_observed_anew() -> None:
    pipe, edit = fresh_pipe("flux"), Counting()
    kind, original = type(pipe.scheduler), type(pipe.scheduler).step

    def timed(self: Any, *args: Any, **kwargs: Any) -> Any:
        return original(self, *args, **kwargs)

    model = HookedDiffusion(pipe)
    with mock.patch.object(kind, "step", timed):
        model.add_hook(RESIDUAL, edit)
    with pytest.raises(EngineError, match=r"\.step` was never called"):
        pipe(**short("flux", steps=3))
    model.reset_hooks()
    edit.steps.clear()
    with model.hooks([(RESIDUAL, edit)]):
        pipe(**short("flux", steps=3))
    assert edit.steps == [0, 1, 2]
    assert kind.step is original


def test_a_loop_in_another_method_of_the_pipeline_is_refused() -> None:
    import diffusers
    from PIL import Image

    pipe = fresh_pipe("sd")
    sde = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}
    solver: Any = diffusers.DPMSolverMultistepScheduler
    scheduler = solver.from_config(pipe.scheduler.config, **sde)
    kind: Any = diffusers.LEditsPPPipelineStableDiffusion
    edits = kind(
        vae=pipe.vae,
        text_encoder=pipe.text_encoder,
        tokenizer=pipe.tokenizer,
        unet=pipe.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    edits.set_progress_bar_config(disable=True)
    given = {"image": Image.new("RGB", (32, 32)), "num_inversion_steps": 3, "skip": 0.0}
    with (
        HookedDiffusion(edits).hooks([("hook_noise_pred", look)]),
        pytest.raises(EngineError, match=r"\.invert` runs the denoiser in a loop of its own"),
    ):
        edits.invert(source_prompt="a cat", **given)


# -- which evaluation -------------------------------------------------------------------------


def test_a_hooked_module_that_is_called_after_the_run_is_refused() -> None:
    model = HookedDiffusion(fresh_pipe("sd"))
    with model.hooks([("native:conv_in", look)]):
        model.pipe(**short("sd"))
        with pytest.raises(EngineError, match="ran outside its denoiser"):
            model.denoiser.conv_in(torch.zeros(2, model.denoiser.config.in_channels, 8, 8))


def test_a_denoiser_called_in_another_thread_is_refused() -> None:
    model, errors = HookedDiffusion(fresh_pipe("sd").unet), []

    def call() -> None:
        try:
            model.denoiser(**arguments())
        except NestedRunError as error:
            errors.append(error)

    with model.hooks([(RESIDUAL, look)]):
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        model.denoiser(**arguments())
    assert len(errors) == 1


def test_checkpointing_computes_again_what_it_recorded() -> None:
    """Though another evaluation ran in between; of two that were recorded it cannot be told."""
    model = HookedDiffusion(fresh_pipe("sd").unet)
    given = arguments()
    weight = next(model.denoiser.parameters())

    def scaled(value: Tensor, hook: HookContext) -> Tensor:
        return torch.tanh(value * hook.timestep / 100)  # which keeps what it computed

    def gradient(*, checkpointed: bool, between: bool) -> Tensor:
        model.denoiser.zero_grad()
        model.denoiser.train()
        switch = "enable" if checkpointed else "disable"
        getattr(model.denoiser, f"{switch}_gradient_checkpointing")()
        with torch.enable_grad():
            out = model.denoiser(**{**given, "timestep": torch.tensor(400)}).sample.square().sum()
        if between:
            with torch.no_grad():
                model.denoiser(**{**given, "timestep": torch.tensor(900)})
        out.backward()
        assert weight.grad is not None
        return weight.grad.clone()

    with model.hooks([(RESIDUAL, scaled)]):
        expected = gradient(checkpointed=False, between=False)
        for between in (False, True):  # several in a row, each with its backward pass
            found = gradient(checkpointed=True, between=between)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        with torch.enable_grad():
            first = model.denoiser(**given).sample.sum()
            model.denoiser(**given)
        with pytest.raises(EngineError, match="one of several evaluations"):
            first.backward()
