"""Attaching hooks to a model, and taking them off again.

Modules are looked up when hooks are attached, not when the model is wrapped, since LoRA and
quantisation replace them. Nothing is attached for what nobody asked for.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from diffusion_lens.architectures.spec import BlockSite
from diffusion_lens.engine.companion import SecondPass
from diffusion_lens.engine.denoisers import attribute_of, take_turns
from diffusion_lens.engine.evaluation import Evaluation
from diffusion_lens.engine.handles import Handle, deaf_on_copies, gated
from diffusion_lens.engine.outside import OUTSIDE
from diffusion_lens.engine.readers import BlockHooks
from diffusion_lens.engine.registration import Registration
from diffusion_lens.engine.step_caches import step_cache_on
from diffusion_lens.engine.steps import StepTracker
from diffusion_lens.engine.taps import Tap, expand
from diffusion_lens.engine.weakened import WeakenedEvaluations
from diffusion_lens.errors import EngineError
from diffusion_lens.hook_points.point import HookPoint


class _Eager:
    """Compiled models run eagerly while any model of the process has hooks on."""

    def __init__(self) -> None:
        """Nobody asks for it yet."""
        self.asking = 0
        self.lock = threading.Lock()
        self.undo = contextlib.ExitStack()

    @contextlib.contextmanager
    def asked_for(self) -> Iterator[None]:
        """Until the context is left; sessions end in any order."""
        with self.lock:
            if not self.asking:
                self.undo.enter_context(torch.compiler.set_stance("force_eager"))
            self.asking += 1
        try:
            yield
        finally:
            with self.lock:
                self.asking -= 1
                if not self.asking:
                    self.undo.close()


EAGER = _Eager()


class Session:
    """All hooks of a model while they are attached."""

    def __init__(
        self,
        tracker: StepTracker,
        points: Mapping[str, HookPoint],
        registrations: Sequence[Registration],
        *,
        model: str,
        asked_for: Callable[[Any], Mapping[str, HookPoint]],
        second: SecondPass | None = None,
    ) -> None:
        """Plan what to attach; raises before anything is touched."""
        self.tracker = tracker
        self.registrations = list(registrations)
        self.taps = expand(
            registrations,
            points,
            model=model,
            branches=tracker.known_branches(),
            asked_for=asked_for,
        )
        inside = {tap.of for tap in self._inside()}
        self.denoisers = {of: tracker.denoisers[of] for of in inside or {""}}
        self.second = None
        if second is not None and second.plan(self.taps):
            self.second = second
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> Session:
        """Attach every hook; on an error the model is left as it was."""
        with contextlib.ExitStack() as stack:
            if self.taps:
                self.refuse_what_hides_hooks()
                if "torch._dynamo" in sys.modules:  # else nothing is compiled; importing takes long
                    stack.enter_context(EAGER.asked_for())
            stack.enter_context(self.tracker.attached())
            self.tracker.on_evaluation.append(self._refuse_unhooked_steps)
            stack.callback(self.tracker.on_evaluation.remove, self._refuse_unhooked_steps)
            weakened = WeakenedEvaluations(self.taps)
            self.tracker.on_evaluation.append(weakened.begins)
            stack.callback(self.tracker.on_evaluation.remove, weakened.begins)
            self.tracker.on_prediction.append(weakened.ends)
            stack.callback(self.tracker.on_prediction.remove, weakened.ends)
            for handle in self._attach_gated():
                stack.callback(handle.remove)
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *_error: object) -> None:
        """Take every hook off."""
        self._exit.close()

    def refuse_what_hides_hooks(self) -> None:
        """Refuse what would keep hooks from firing.

        Raises:
            EngineError: Naming it.
        """
        caches = map(step_cache_on, self.denoisers.values())
        cache = next((one for one in caches if one is not None), None)
        if cache is not None:
            raise EngineError(
                f"a diffusers cache is enabled on the denoiser ({cache}): it leaves out what an "
                "earlier step gave, whose hooks would not fire; call `disable_cache()` first, or "
                "take off what `diffusers.hooks.apply_…` put on"
            )
        parallel = (getattr(one, "_parallel_config", None) for one in self.denoisers.values())
        if any(one is not None for one in parallel):
            raise EngineError(
                "the denoiser runs context-parallel, where each process sees only part of the "
                "sequence; run hooked calls on one device"
            )

    def _inside(self) -> Iterator[Tap]:
        """The hooks inside of denoisers."""
        for taps in self.taps.values():
            yield from (tap for tap in taps if tap.point.module != "scheduler")

    def _refuse_unhooked_steps(self, evaluation: Evaluation) -> None:
        """Refuse a step that one denoiser takes where hooks inside the other alone wait for it.

        Whoever hooks both has said which is which.

        Raises:
            EngineError: Naming the step, and how to hook it.
        """
        pipe, step = self.tracker.pipe, evaluation.step
        hooked = evaluation.of in self.denoisers
        if hooked or not evaluation.run.in_pipeline or not take_turns(pipe):
            return
        asked = [tap.registration for tap in self._inside() if not tap.registration.closed]
        waiting = [
            one
            for one in asked
            if one.site.has_step(step) and any(one.site.fires_in(at) for at, _ in evaluation.rows)
        ]
        if waiting:
            name = attribute_of(pipe, evaluation.denoiser)
            raise EngineError(
                f"{waiting[0]!r} waits for step {step}, which {type(pipe).__name__} takes with its "
                f"`{name}`, where no hook of this model is; keep to the steps of the other "
                "denoiser with Site(steps=…), put hooks on both (the second's are `denoiser2.…` "
                "where the pipeline is wrapped without denoiser=), hook this one alone with "
                f"`HookedDiffusion(pipe, denoiser={name!r})`, or run the first alone with "
                "`pipe.register_to_config(boundary_ratio=None)`"
            )

    # -- from points to torch hooks -----------------------------------------------------------

    def _attach_gated(self) -> Iterator[Handle]:
        """Every hook; where a second pass runs, each is deaf while the other one does."""
        second = self.second
        for block, handle in self._attach():
            deaf_on_copies(handle)
            if second is not None:
                gated(handle, second.listens(block))
            yield handle
        for handle in () if second is None else second.attach():
            yield deaf_on_copies(handle)

    def _attach(self) -> Iterator[tuple[BlockSite | None, Handle]]:
        by_block: dict[BlockSite, dict[Any, list[Tap]]] = {}
        for taps in self.taps.values():
            source: Any = taps[0].point.source
            if type(source) in OUTSIDE:
                yield None, OUTSIDE[type(source)](self.tracker, source, taps)
            else:
                by_block.setdefault(source.block, {})[source] = taps
        for block in () if self.second is None else self.second.blocks():
            by_block.setdefault(block, {})
        for block, sources in by_block.items():
            for handle in BlockHooks(self.tracker, block, sources, self.second).attach():
                yield block, handle
