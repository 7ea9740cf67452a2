"""What was asked for and never happened is an error: points, steps, heads."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lens import HookContext, HookedDiffusion, Site, read_only
from diffusion_lens.engine.registration import Fired, Registration, describe
from diffusion_lens.errors import HookNeverFiredError, HookReturnError, RunError
from diffusion_lens.hooked_diffusion.silence import (
    named,
    refuse_heads_that_are_not_there,
    refuse_silence,
)
from diffusion_lens.interventions import scale_heads, scale_token_columns
from tests.pipelines import latents_of, shared_pipe, short

NAME = "blocks.0.attn.img.hook_z"


@pytest.fixture(scope="module")
def model() -> HookedDiffusion:
    return HookedDiffusion(shared_pipe("sd3"))


def look(_activation: Tensor, _hook: HookContext) -> None:
    pass


def missed(message: str) -> Any:
    return pytest.raises(HookNeverFiredError, match=re.escape(message))


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (range(30), "the model ran 3 steps (0 to 2): steps 3, 4, 5, … never came. Write steps=range"
         "(0, 3) for those that there are, or steps=slice(0, None) for as many as a run has"),
        (slice(1, 5), "steps 3, 4 never came. Write steps=range(1, 3) for those that there are, or "
         "steps=slice(1, None)"),
        (slice(0, 30, 2), "steps 4, 6, 8, … never came. Write steps=range(0, 3, 2) for those that "
         "there are, or steps=slice(0, None, 2) for as many"),
        ([1, 30], "step 30 never came. Write steps=[1]"),
        (slice(0, 10**12), "never came. Write steps=range(0, 3)"),
    ],
    ids=str,
)  # fmt: skip
def test_steps_of_which_only_some_exist(model: HookedDiffusion, steps: Any, message: str) -> None:
    settings = short("sd3", steps=3)
    with missed(f"look was to fire at {NAME} (") as caught:
        model.run_with_hooks(fwd_hooks=[(Site(NAME, steps=steps), look)], **settings)
    assert message in str(caught.value)
    with missed(message):
        model.run_with_cache(names_filter=NAME, steps=steps, show_progress=False, **settings)


def test_what_is_advised_works(model: HookedDiffusion) -> None:
    settings = short("sd3", steps=3)
    for steps in (range(3), slice(0, None), slice(0, None, 2), [1], slice(2, None)):
        _, cache = model.run_with_cache(
            names_filter=NAME, steps=steps, show_progress=False, **settings
        )
        assert cache.steps == [step for step in range(3) if Site(NAME, steps=steps).has_step(step)]


def test_schedulers_that_evaluate_more_often_than_they_are_told() -> None:
    model = HookedDiffusion(shared_pipe("sd"))  # PNDM: 3 evaluations for 2 steps
    site = Site("hook_latents", steps=range(3))
    both = [(site, look), (site.with_(steps=range(2)), look)]
    model.run_with_hooks(fwd_hooks=both, **short("sd"))
    with missed("the model ran 3 steps (0 to 2): step 3 never came"):
        model.run_with_hooks(fwd_hooks=[(site.with_(steps=range(4)), look)], **short("sd"))


def test_image_to_image_has_fewer_steps() -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    pipe = StableDiffusionImg2ImgPipeline.from_pipe(shared_pipe("sd"))
    pipe.set_progress_bar_config(disable=True)
    model = HookedDiffusion(pipe)
    settings = {
        "image": torch.zeros(1, 3, 32, 32),
        "strength": 0.5,
        "num_inference_steps": 8,
        "output_type": "latent",
    }
    out = model("a cat", **settings)
    ran = out.made_by.steps
    assert 0 < ran < 8
    site = Site("hook_latents", steps=range(8))
    with missed(f"the model ran {ran} steps (0 to {ran - 1})"):
        model.run_with_hooks("a cat", fwd_hooks=[(site, look)], **settings)
    there = site.with_(steps=range(ran))
    model.run_with_hooks("a cat", fwd_hooks=[(there, look)], **settings)


def test_every_run_of_the_model_is_judged_by_itself(model: HookedDiffusion) -> None:
    site = Site(NAME, steps=range(3))
    with missed(f"look was to fire at {NAME}"), model.hooks([(site, look)]):
        model(**short("sd3", steps=3))
        model(**short("sd3", steps=2))


def test_the_pipelines_own_calls_and_single_evaluations_count_together(
    model: HookedDiffusion,
) -> None:
    site, pipe = Site(NAME, steps=range(3)), shared_pipe("sd3")
    with model.hooks([(site, look)]):
        pipe(**short("sd3", steps=2))
        pipe(**short("sd3", steps=3))
    with missed("step 2 never came"), model.hooks([(site, look)]):
        pipe(**short("sd3", steps=2))
    settings = short("sd3", steps=3)
    latents = settings.pop("latents")
    del settings["output_type"]
    with model.hooks([(site, look)]):
        for step in (2, 0, 1):
            model.denoise(latents, step=step, **settings)
    with missed(f"was to fire at {NAME}"), model.hooks([(site, look)]):
        for step in (0, 2):
            model.denoise(latents, step=step, **settings)
    with model.hooks([(site.with_(steps=slice(0, None)), look)]):
        model.denoise(latents, step=2, **settings)


def put_on(site: Site, fired: dict[str, set[int]], fn: Any = look) -> Registration:
    registration = Registration(site, fn)
    for name, steps in fired.items():
        registration.fired[name] = Fired(shown=len(steps), steps=steps)
    return registration


def judge(registration: Registration, steps: Any, *, planned: int = 0) -> None:
    names = {registration: list(registration.fired)}
    refuse_silence([registration], names, branches=["cond"], steps=steps, planned=planned)


def test_one_block_that_is_left_out_at_some_steps_is_named() -> None:
    fired = {"blocks.0.x": {0, 1, 2, 3}, "blocks.1.x": {0, 2}}
    with missed(
        "look was to fire at blocks.1.x (Site.parse('**.x[step=0:4]')), but did not at steps 1, 3, "
        "which the run had: the pipeline, its guider or a step cache leaves it out there"
    ):
        judge(put_on(Site("**.x", steps=range(4)), fired), 4)
    judge(put_on(Site("**.x", steps=[0, 2]), fired), 4)
    judge(put_on(Site("**.x", steps=slice(0, None)), fired), 4)
    judge(put_on(Site("**.x"), fired), 4)


def test_an_interrupted_run_misses_nothing_that_was_cut_off() -> None:
    site = Site("**.x", steps=range(20))
    judge(put_on(site, {"blocks.0.x": {0, 1, 2}}), 3, planned=20)
    with missed("the model ran 3 steps (0 to 2): steps 10, 11, 12, … never came"):
        judge(put_on(site, {"blocks.0.x": {0, 1, 2}}), 3, planned=10)
    with missed("but did not at step 1, which the run had"):
        judge(put_on(site, {"blocks.0.x": {0, 2}}), 3, planned=20)
    with missed("never fired at blocks.0.x"):
        judge(put_on(site, {"blocks.0.x": set()}), 3, planned=20)


def test_single_evaluations_are_named_as_such() -> None:
    with missed("but the model ran the steps 7 alone: step 3 never came. Write steps=[7]"):
        judge(put_on(Site("**.x", steps=[3, 7]), {"blocks.0.x": {7}}), {7})


def test_only_closed_selections_name_their_steps() -> None:
    for steps, expected in ((None, []), (slice(3, None), []), (2, [2]), ([5, 2], [2, 5])):
        assert list(named(Site("x", steps=steps).steps)) == expected
    assert list(named(Site("x", steps=slice(None, 7, 3)).steps)) == [0, 3, 6]


Z, PATTERN = "blocks.*.attn.img.hook_z", "blocks.*.attn.hook_pattern"


@pytest.mark.parametrize(
    ("name", "make"), [(Z, scale_heads), (PATTERN, scale_token_columns)], ids=["heads", "columns"]
)
def test_factors_of_heads_that_are_not_there(model: HookedDiffusion, name: str, make: Any) -> None:
    site, run = Site(name, branch="cond"), partial(model.run_with_hooks, **short("sd3"))
    with missed("names the (block, head) pairs (99, 0), at which it is never called: its Sites"):
        run(fwd_hooks=[(site, make({(99, 0): 0.0, (0, 1): 0.0}))])
    with missed("pairs (0, 3), at which it is never called: its Sites have block 0: heads 1, 2"):
        run(fwd_hooks=[(site.with_(heads=[(0, 1), (0, 2)]), make({(0, 3): 0.0, (0, 1): 0.0}))])
    with missed("pairs (1, 0)"):
        run(fwd_hooks=[(site.with_(name=name.replace("*", "0")), make({(1, 0): 2.0}))])
    with missed("pairs (1, 4)"):
        run(fwd_hooks=[(site, make({(1, 4): 0.0}))])
    plain = latents_of(model(**short("sd3")))
    edited = run(fwd_hooks=[(site, make({(1, 3): 0.0}))])
    assert not torch.equal(latents_of(edited), plain)


def test_one_hook_on_several_sites_shares_its_heads(model: HookedDiffusion) -> None:
    hook = scale_heads({(0, 0): 0.5, (1, 3): 0.5})
    sites = [Site(Z.replace("*", str(block)), heads=[block * 3]) for block in (0, 1)]
    model.run_with_hooks(fwd_hooks=[(site, hook) for site in sites], **short("sd3"))
    with model.hooks([(site, hook) for site in sites]):
        refuse_heads_that_are_not_there(model.wiring.taps_of(model.wiring.registrations))
    with missed("pairs (1, 3)"), model.hooks([(sites[0], hook)]):
        pass
    every = scale_heads({(block, head): 0.5 for block in (0, 1) for head in range(4)})
    with model.hooks([("blocks.*.attn.img.hook_z", every)]):
        refuse_heads_that_are_not_there(model.wiring.taps_of(model.wiring.registrations))


class Looker:
    """Hook functions that take no attributes."""

    __slots__ = ("seen",)

    def __init__(self) -> None:
        self.seen: list[int] = []

    def look(self, _activation: Tensor, hook: HookContext) -> None:
        self.seen.append(hook.step)

    def double(self, activation: Tensor, _hook: HookContext) -> Tensor:
        return activation * 2

    __call__ = look


def test_any_callable_can_be_marked_read_only(model: HookedDiffusion) -> None:
    looker = Looker()
    for fn in (looker.look, looker, partial(Looker.look, looker), partial(looker.look)):
        looker.seen.clear()
        marked = read_only(fn)
        assert marked.read_only  # type: ignore[attr-defined]
        out = model.run_with_hooks(fwd_hooks=[(NAME, marked)], **short("sd3"))
        assert sorted(set(looker.seen)) == [0, 1] and out.report.rows[0].edited == 0
        assert describe(marked) in (out.report.rows[0].hook, describe(fn))
    assert describe(read_only(looker.look)) == "Looker.look"
    with pytest.raises(HookReturnError, match=r"Looker.double .* is marked read-only but edited"):
        model.run_with_hooks(fwd_hooks=[(NAME, read_only(looker.double))], **short("sd3"))


def test_what_is_no_function_cannot_be_marked() -> None:
    import inspect

    with pytest.raises(RunError, match="read_only takes a hook function"):
        inspect.unwrap(read_only)(3)  # type: ignore[arg-type]
