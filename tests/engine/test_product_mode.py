"""What listens to attention products leaves nothing behind, whatever a hook does."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from diffusion_lens import HookContext, HookedDiffusion
from diffusion_lens.engine.firing import RUNNING
from diffusion_lens.engine.product import Product
from diffusion_lens.engine.product_mode import ProductMode, sweep
from tests.pipelines import evaluate, evaluation_of, fresh_pipe, latents_of, shared_pipe, short

INSIDE = tuple(
    f"blocks.0.attn.{name}"
    for name in ("img.hook_q", "img.hook_k", "img.hook_v", "hook_attn_scores", "hook_pattern")
)
AROUND = ("blocks.0.attn.img.hook_z", "blocks.0.attn.img.hook_result")
BEFORE_ROPE = "blocks.0.attn.img.hook_q_pre_rope"


def _points(family: str) -> tuple[str, ...]:
    return (*INSIDE, *AROUND, *((BEFORE_ROPE,) if family == "flux" else ()))


def _left() -> list[Any]:
    return list(_get_current_function_mode_stack())


class _Once:
    """A hook that does something the first time that it is called."""

    def __init__(self, what: Any) -> None:
        self.what = what
        self.done = False

    def __call__(self, _activation: Tensor, _hook: HookContext) -> None:
        if not self.done:
            self.done = True
            self.what()


@pytest.mark.parametrize(("family", "kind"), [("sd", ValueError), ("flux", KeyboardInterrupt)])
def test_a_hook_that_raises_leaves_nothing(family: str, kind: type[BaseException]) -> None:
    evaluation_of(family)
    model = HookedDiffusion(shared_pipe(family))
    denoiser = HookedDiffusion(model.denoiser)
    plain = evaluate(denoiser, family)

    def fail() -> None:
        raise kind

    for point in _points(family):
        with pytest.raises(kind):
            evaluate(denoiser, family, (point, _Once(fail)))
        assert _left() == []
    assert RUNNING.depth == 0
    assert torch.equal(evaluate(denoiser, family, (INSIDE[0], _Once(lambda: None))), plain)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "other"), [("sd", "flux"), ("flux", "flux")])
def test_a_hook_that_runs_another_model_changes_neither(family: str, other: str) -> None:
    evaluation_of(family)
    evaluation_of(other)
    mine = HookedDiffusion(fresh_pipe(family).components[_part(family)])
    theirs = HookedDiffusion(fresh_pipe(other).components[_part(other)])
    shown: list[Tensor] = []

    def keep(value: Tensor, _hook: HookContext) -> None:
        shown.append(value.clone())

    hooks = [(name, keep) for name in _points(other)]
    plain, other_plain = evaluate(mine, family), evaluate(theirs, other, *hooks)
    alone = [tuple(value.shape) for value in shown]
    for point in (INSIDE[0], INSIDE[4], AROUND[0], *_points(family)[7:]):
        found, seen = [], []

        def run(found: list = found) -> None:
            found.append(evaluate(theirs, other))
            found.append(evaluate(theirs, other, *hooks))

        def count(value: Tensor, _hook: HookContext, seen: list = seen) -> None:
            seen.append(tuple(value.shape))

        shown.clear()
        again = [(name, count) for name in _points(family)]  # listens as often as ever
        assert torch.equal(evaluate(mine, family, (point, _Once(run)), *again), plain)
        assert all(torch.equal(one, other_plain) for one in found) and len(found) == 2
        assert [tuple(value.shape) for value in shown] == alone
        counted = list(seen)
        seen.clear()
        evaluate(mine, family, *again)
        assert counted == seen
        assert _left() == []


def test_an_edit_of_another_model_inside_a_hook_is_its_own() -> None:
    evaluation_of("sd")
    evaluation_of("flux")
    mine = HookedDiffusion(fresh_pipe("sd").unet)
    theirs = HookedDiffusion(shared_pipe("flux").transformer)
    edit: Any = ("blocks.0.attn.hook_pattern", lambda pattern, _hook: pattern * 0.5)
    plain, edited = evaluate(mine, "sd"), evaluate(theirs, "flux", edit)
    for point in (INSIDE[4], AROUND[0]):
        found: list[Tensor] = []
        run = _Once(lambda found=found: found.append(evaluate(theirs, "flux", edit)))
        assert torch.equal(evaluate(mine, "sd", (point, run)), plain)
        assert torch.equal(found[0], edited)


def test_a_hook_that_calls_the_product_itself_is_let_through() -> None:
    evaluation_of("flux")
    model = HookedDiffusion(shared_pipe("flux").transformer)
    plain, seen = evaluate(model, "flux"), []

    def run() -> None:
        value = torch.randn(1, 2, 5, 4)
        seen.append(F.scaled_dot_product_attention(value, value, value).shape)

    hooks = [(point, _Once(run)) for point in _points("flux")]
    assert torch.equal(evaluate(model, "flux", *hooks), plain)
    assert seen == [(1, 2, 5, 4)] * len(hooks)


def test_a_run_that_was_broken_off_hears_nothing_more() -> None:
    model, armed = HookedDiffusion(fresh_pipe("flux")), [True]
    fired: list[str] = []

    def interrupt(_value: Tensor, hook: HookContext) -> None:
        fired.append(hook.name)
        if armed[0]:
            raise KeyboardInterrupt

    value = torch.randn(1, 2, 5, 4)
    settings = short("flux", steps=1)
    model.add_hook("blocks.0.attn.img.hook_z", interrupt)
    model.add_hook("blocks.0.attn.img.hook_q", lambda value, hook: fired.append(hook.name))
    with pytest.raises(KeyboardInterrupt):
        model(**settings)
    before = list(fired)
    F.scaled_dot_product_attention(value, value, value)
    assert fired == before
    armed[0] = False
    hooked = latents_of(model(**settings))
    assert len(fired) > len(before)
    model.reset_hooks()
    assert _left() == []
    assert torch.equal(latents_of(model(**settings)), hooked)


class _Module(nn.Module):
    """Calls the product once, inside a mode that a hook of its own starts and stops."""

    def __init__(self, attend: Any) -> None:
        super().__init__()
        self.attend = attend
        self.mode: Any = None
        self.register_forward_pre_hook(self._enter)

    def _enter(self, _module: nn.Module, _args: Any) -> None:
        self.mode = ProductMode(self.attend, lambda func, args, kwargs: func(*args, **kwargs))
        self.mode.start()

    def forward(self, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(value, value, value)


def test_a_mode_that_is_stopped_while_it_handles_a_call_comes_off_after_it() -> None:
    value = torch.randn(1, 2, 5, 4)

    def attend(_call: int, product: Product) -> Tensor:
        module.mode.stop(module)
        return product.fused() * 2

    module = _Module(attend)
    assert torch.equal(module(value), 2 * F.scaled_dot_product_attention(value, value, value))
    assert _left() == [] and not module._forward_hooks

    def fails(_call: int, _product: Product) -> Tensor:
        module.mode.stop(module)
        raise ValueError

    module.attend = fails
    with pytest.raises(ValueError, match=r"^$"):
        module(value)
    assert _left() == [] and not module._forward_hooks


def test_a_mode_comes_off_where_its_module_runs_again_inside_the_handler() -> None:
    value, runs = torch.randn(1, 2, 5, 4), [1]

    def attend(_call: int, product: Product) -> Tensor:
        if runs:
            runs.pop()
            module.mode.stop(module)
            module(value)
            module.mode.stop(module)
        return product.fused()

    module = _Module(attend)
    module(value)
    assert _left() == [] and not module._forward_hooks


def test_a_mode_comes_off_from_under_another() -> None:
    class Other(TorchFunctionMode):
        def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None):
            return func(*args, **(kwargs or {}))

    module = _Module(lambda _call, product: product.fused())
    module._enter(module, None)
    with Other() as other:
        module.mode.stop(module)
        assert _left() == [other]
    assert _left() == []


def test_a_mode_of_another_thread_is_deaf_and_swept_there() -> None:
    heard: list[int] = []
    module = _Module(lambda call, product: heard.append(call) or product.fused())
    value = torch.randn(1, 2, 5, 4)
    left: list[int] = []
    started, stopped = threading.Event(), threading.Event()

    def work() -> None:
        module._enter(module, None)
        started.set()
        stopped.wait(10)
        F.scaled_dot_product_attention(value, value, value)
        left.append(len(_left()))

    thread = threading.Thread(target=work)
    thread.start()
    started.wait(10)
    module.mode.stop(module)
    stopped.set()
    thread.join()
    assert heard == [] and left == [1]
    sweep()
    assert _left() == []


def test_hooks_of_one_thread_do_not_silence_those_of_another() -> None:
    inside, done = threading.Event(), threading.Event()
    depths: list[int] = []
    evaluation_of("sd")
    models = [HookedDiffusion(fresh_pipe("sd").unet) for _ in range(2)]

    def wait(_value: Tensor, _hook: HookContext) -> None:
        inside.set()
        done.wait(20)

    def work() -> None:
        torch.set_grad_enabled(False)
        evaluate(models[0], "sd", ("blocks.0.img.hook_resid_pre", wait))

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(20)
    seen: list[str] = []
    evaluate(
        models[1], "sd", ("blocks.0.attn.hook_pattern", lambda p, hook: seen.append(hook.name))
    )
    depths.append(RUNNING.depth)
    done.set()
    thread.join()
    assert seen and depths == [0]


def _part(family: str) -> str:
    return "unet" if family == "sd" else "transformer"
