"""Following a pipeline through its calls, steps and evaluations."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lens.architectures.spec import DenoiserSpec
from diffusion_lens.engine.branches import FURTHER, Rows, branch_rows
from diffusion_lens.engine.callers import called_by_method_of, running_pipeline
from diffusion_lens.engine.denoisers import by_prefix
from diffusion_lens.engine.evaluation import Evaluation
from diffusion_lens.engine.guiders import FollowedGuider, guiders_of
from diffusion_lens.engine.handles import deaf_on_copies
from diffusion_lens.engine.modular import asked, is_modular
from diffusion_lens.engine.noise import NoiseLevel, Schedule, noise_level
from diffusion_lens.engine.observing import observed
from diffusion_lens.engine.prompt_blocks import EncoderBlocks
from diffusion_lens.engine.run_state import PartPrompts, RunState, Seen, images_per_prompt
from diffusion_lens.engine.words import differs
from diffusion_lens.errors import EngineError, NestedRunError
from diffusion_lens.hook_points.names import which_denoiser


class StepTracker:
    """Follows a pipeline through its steps.

    A step is counted when the scheduler steps, so PNDM's repeated timestep and Heun's second
    evaluation have numbers of their own. What is known of a run lies in `run`, which every call of
    the pipeline replaces; what the tracker itself holds lives as long as the model.

    Attributes:
        run: What is known of the run.
        current: The evaluation that is running, or the last one.
        running: Whether it is running.
        hooks_running: How many hooks are being called now, one inside the other.
    """

    def __init__(
        self,
        pipe: Any,
        denoiser: nn.Module,
        spec: DenoiserSpec,
    ) -> None:
        """Follow `denoiser` inside `pipe` (None for a bare denoiser)."""
        self.pipe = pipe
        self.spec = spec
        self.branches: tuple[str, ...] | None = None
        self.companion_tokens: dict[str, int] = {}
        self.run = RunState()
        self.current: Evaluation | None = None
        self.running = False
        self.hooks_running = 0
        self.total = 0
        self.on_call: list[Callable[[], None]] = []
        self.on_end: list[Callable[[], None]] = []
        self.on_start: list[Callable[[], None]] = []
        self.on_evaluation_by_hand: list[Callable[[], None]] = []
        self.on_evaluation: list[Callable[[Evaluation], None]] = []
        self.on_prediction: list[Callable[[Evaluation], None]] = []
        self.on_guided: list[Callable[[Tensor, Any, Tensor], Tensor]] = []
        self.on_sample: list[Callable[[Tensor], Tensor]] = []
        self.on_step: list[Callable[[], None]] = []
        self.on_timesteps: list[Callable[[], None]] = []
        self._noting: list[Seen] = []
        self._recorded: list[Evaluation] = []
        self._recomputed = False
        self._scheduler: Any = None
        self.follow(denoiser)

    def follow(self, denoiser: nn.Module) -> None:
        """Follow this denoiser, and what runs beside it, from the next time that hooks go on."""
        self.denoiser = denoiser
        self.denoisers = {"": denoiser} if self.pipe is None else by_prefix(self.pipe, denoiser)
        # Of the class: a forward on the instance (offloading, replays) may take anything.
        self._parameters = list(inspect.signature(type(denoiser).forward).parameters)[1:]

    def module(self, path: str, *, of: str) -> nn.Module:
        """The module at a path in the denoiser that a name (`of`) is of."""
        return self.denoisers[which_denoiser(of)].get_submodule(path)

    # -- what is known --------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """How many times the scheduler has stepped in this run."""
        return self.run.step

    def scheduler(self) -> Any:
        """The pipeline's scheduler.

        Raises:
            EngineError: For a bare denoiser.
        """
        if self.pipe is None:
            raise EngineError(
                "a bare denoiser has no scheduler; wrap the pipeline to read sigma or prompts"
            )
        return self.pipe.scheduler

    def evaluation(self) -> Evaluation:
        """The evaluation that is running, or that gradient checkpointing computes again.

        Raises:
            EngineError: If a hooked module is called outside the denoiser, or if gradient
                checkpointing recomputes one of several evaluations.
        """
        if recomputing():
            return self._computed_again()
        if self.current is None or not self.running:
            raise EngineError(
                "a hooked module ran outside its denoiser; call the pipeline or the denoiser"
            )
        return self.current

    def last_evaluation(self) -> Evaluation:
        """The evaluation that the scheduler steps after.

        Raises:
            EngineError: If there was none.
        """
        if self.current is None:
            raise EngineError("the scheduler stepped before the denoiser ran")
        return self.current

    def _computed_again(self) -> Evaluation:
        if len(self._recorded) != 1:
            raise EngineError(
                "gradient checkpointing recomputes activations of one of several evaluations, "
                "and which one cannot be told; run backward after each evaluation, or switch "
                "checkpointing off with `disable_gradient_checkpointing()`"
            )
        self._recomputed = True
        return self._recorded[0]

    def _note_recorded(self, evaluation: Evaluation) -> None:
        """Keep the evaluations that a backward pass may compute again."""
        if self._recomputed:
            self._recorded, self._recomputed = [], False
        checkpointing = getattr(evaluation.denoiser, "is_gradient_checkpointing", False)
        if checkpointing and torch.is_grad_enabled():
            self._recorded.append(evaluation)

    def branch_rows(self, run: RunState, arguments: Mapping[str, Any], batch: int) -> Rows:
        """The rows of the batch that belong to each branch, in batch order."""
        return branch_rows(run, self.pipe, self.spec, arguments, batch, stated=self.branches)

    def known_branches(self) -> tuple[str, ...]:
        """Every branch that an evaluation of this model can have."""
        beside = (one.branch for one in self.spec.asides.values())
        every = (*self.spec.branches, *FURTHER, *beside, *(self.branches or ()))
        return tuple(dict.fromkeys(every))

    def scheduled(self, run: RunState, timestep: Any) -> tuple[float, float | None] | None:
        """Timestep and sigma of the step that is running, or None where only the device knows.

        Args:
            run: The run.
            timestep: What the loop handed on.
        """
        schedule, scheduler = run.schedule, getattr(self.pipe, "scheduler", None)
        if schedule is None or not run.in_pipeline:
            return None
        begun = getattr(scheduler, "begin_index", None) or 0
        told = hasattr(scheduler, "begin_index")
        index = schedule.index(timestep, begun + run.step - run.first_step if told else None)
        if index is None:
            return None
        sigma = None if schedule.sigmas is None else schedule.sigmas[index]
        return schedule.timesteps[index], sigma

    def noise_level(self, timestep: Any) -> NoiseLevel:
        """The noise level of a timestep that the loop hands to the scheduler."""
        known, sigma = self.scheduled(self.run, timestep) or (float(timestep), None)
        return noise_level(self.scheduler(), known, sigma)

    @property
    def steps_ahead(self) -> int | None:
        """How many steps the run will have, as far as the scheduler tells.

        Image-to-image begins within the schedule; schedulers that do not say where give an upper
        bound.
        """
        length = self.run.length
        if length is None or self.pipe is None:
            return length
        begun = getattr(self.pipe.scheduler, "begin_index", None) or 0
        return length - begun if begun < length else length

    @contextlib.contextmanager
    def noting(self) -> Iterator[Seen]:
        """Note which steps and branches run while the context is open."""
        seen = Seen()
        self._noting.append(seen)
        try:
            yield seen
        finally:
            self._noting.remove(seen)

    # -- following ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def attached(self) -> Iterator[StepTracker]:
        """Follow the pipeline while the context is open."""
        with contextlib.ExitStack() as undo:
            for of, module in self.denoisers.items():
                before = functools.partial(self._before, of)
                # In front of all others, whose evaluation must be known when they fire.
                handle = module.register_forward_pre_hook(before, with_kwargs=True, prepend=True)
                undo.callback(deaf_on_copies(handle).remove)
                handle = module.register_forward_hook(self._after, always_call=True)
                undo.callback(deaf_on_copies(handle).remove)
                undo.enter_context(observed(module, "cache_context", self._cache_context))
            if self.pipe is not None:
                self._scheduler = scheduler = self.pipe.scheduler
                undo.enter_context(observed(scheduler, "set_timesteps", self._set_timesteps))
                undo.enter_context(observed(scheduler, "step", self._step))
                undo.enter_context(observed(self.pipe, "encode_prompt", self._encode_prompt))
                undo.enter_context(observed(self.pipe, "__call__", self._pipeline_call))
                for guider in guiders_of(self.pipe):
                    undo.enter_context(FollowedGuider(guider, self).attached())
                undo.enter_context(EncoderBlocks(self).attached())
            yield self

    def forget(self) -> None:
        """Leave the run that was followed, so that nothing of it is taken for the next one's."""
        self.run = RunState()
        self.current, self.running = None, False
        self._recorded, self._recomputed = [], False

    def refuse_while_running(self, what: str) -> None:
        """Refuse what cannot be done inside a hook, a callback or beside a run of another thread.

        Raises:
            NestedRunError: If the model is running.
        """
        if self.hooks_running:
            where = "inside one of its own hooks"
        elif self.run.in_pipeline:
            same = self.run.thread == threading.get_ident()
            where = "inside its own run (a callback?)" if same else "while it runs in a thread"
        else:
            return
        raise NestedRunError(
            f"{what} {where}, where its steps, branches and hooks would get mixed up. Keep what "
            "you need (`hook.clone()`, the callback's latents) and do it after the run; narrow "
            "hooks to steps with Site(steps=…). Another model, with modules of its own, can be "
            "run there."
        )

    @contextlib.contextmanager
    def calling(self, arguments: Mapping[str, Any]) -> Iterator[RunState]:
        """Follow one call of the pipeline while the context is open.

        Args:
            arguments: Those of the call, by name.

        Raises:
            NestedRunError: If the model is running already.
        """
        self.refuse_while_running("the model was run")
        for listener in self.on_call:
            listener()
        self._clear_away()
        self.run, self.current = RunState(asked=dict(arguments)), None
        if self.pipe is not None and not is_modular(self.pipe):
            self._note_call(arguments)
        try:
            yield self.run
            if getattr(self.pipe, "_interrupt", False):
                for seen in self._noting:
                    seen.planned = max(seen.planned, self.steps_ahead or 0)
            else:
                self._refuse_unseen_steps()
        finally:
            self.run = RunState()
            self._clear_away()
            for listener in list(self.on_end):
                listener()

    def _refuse_unseen_steps(self) -> None:
        """Refuse a run in which the denoiser ran and the scheduler never stepped."""
        if self.run.evaluations and self.run.step == self.run.first_step:
            raise EngineError(
                f"{type(self.pipe).__name__} ran its denoiser {self.run.evaluations} times, and "
                f"`{type(self._scheduler).__name__}.step` was never called by it, so that all of "
                "this passed for step 0; hook its denoiser by hand, with `branches=`"
            )

    def _pipeline_call(self, original: Callable, *args: Any, **kwargs: Any) -> Any:
        arguments = inspect.signature(original).bind_partial(*args, **kwargs).arguments
        given = {**arguments, **arguments.get("kwargs", {})}
        with self.calling(asked(self.pipe, arguments) if is_modular(self.pipe) else given):
            return original(*args, **kwargs)

    def _before(self, of: str, _module: nn.Module, args: tuple, kwargs: dict) -> None:
        if self.hooks_running:
            self.refuse_while_running("the denoiser was run")
        self._clear_away()
        if self.run.in_pipeline:
            self._refuse_new_parts()
        else:
            for listener in self.on_evaluation_by_hand:
                listener()
        self._refuse_unfollowed_pipeline()
        self.current = self._begun(of, args, kwargs)
        self._note_recorded(self.current)
        self.running = True
        self.total += 1
        for listener in self.on_evaluation:
            listener(self.current)

    def _begun(self, of: str, args: tuple, kwargs: dict) -> Evaluation:
        """The evaluation that begins, counted."""
        if self.run.in_pipeline and self.run.passes:
            raise EngineError(
                f"{type(self.pipe).__name__} goes through its schedule once more in the same run, "
                "for another part of what it makes (a segment of a video), so that steps of two "
                "parts would be taken for the same; make one part in a run"
            )
        arguments = dict(zip(self._parameters, args, strict=False)) | kwargs
        begun = Evaluation(self, self.run, arguments, of)
        self.run.call += 1
        self.run.evaluations += 1
        for seen in self._noting:
            seen.branches.update(branch for branch, _ in begun.rows)
            seen.steps.add(self.run.step)
            seen.taken.setdefault(of, set()).add(self.run.step)
        return begun

    def _after(self, _module: nn.Module, _args: tuple, _output: Any) -> None:
        self.running = False

    def _clear_away(self) -> None:
        """Undo what an interrupted evaluation left behind: torch calls no hook after a Ctrl-C."""
        self.running = False
        for listener in self.on_start:
            listener()

    def _refuse_new_parts(self) -> None:
        if self.pipe.scheduler is not self._scheduler:
            raise EngineError(
                f"the scheduler was replaced by a {type(self.pipe.scheduler).__name__} in the "
                "middle of a run, so that its steps are not known; replace it between runs"
            )
        if self.run.thread != threading.get_ident():
            raise NestedRunError(
                "the denoiser runs in a thread beside a run of the same model; wrap a pipeline "
                "with modules of its own for each thread"
            )

    def _refuse_unfollowed_pipeline(self) -> None:
        """Refuse a denoiser that a pipeline calls whose steps and branches nobody follows."""
        found = running_pipeline()
        if found is None or not self._is_part_of(found.pipe):
            return
        name = type(found.pipe).__name__
        if found.pipe is self.pipe:
            if self.run.in_pipeline or self.branches:
                return
            if is_modular(self.pipe) and found.method != "__call__":
                raise EngineError(
                    f"a {found.method} of {name} runs the denoiser outside a call of the pipeline "
                    "that was followed, so that steps and branches are not known; put hooks on "
                    "before, and call the pipeline: `model.pipe(…)`"
                )
            if found.method == "__call__":
                raise EngineError(
                    f"hooks were put on in the middle of a run of {name}, whose steps and branches "
                    "so far were not followed; put them on before, with Site(steps=…)"
                )
            raise EngineError(
                f"`{name}.{found.method}` runs the denoiser in a loop of its own, whose branches "
                "are not described; say what its batch holds with `model.hooks(..., "
                'branches=(…))`, in order, such as branches=("uncond", "cond")'
            )
        mine = type(self.denoiser if self.pipe is None else self.pipe).__name__
        raise EngineError(
            f"a {name} runs the hooked denoiser, but the model wraps a {mine}, so "
            "that steps and branches are not known; wrap the pipeline that runs: "
            "`HookedDiffusion(pipe)`"
        )

    def _is_part_of(self, pipe: Any) -> bool:
        """Whether a pipeline runs the hooked denoiser, or another model of the user's."""
        parts = vars(pipe).values()
        mine = list(self.denoisers.values())
        return any(getattr(part, "_orig_mod", part) is one for part in parts for one in mine)

    def _is_the_loops_own(self) -> bool:
        """Whether the pipeline's loop calls its scheduler, not a hook or a callback of a user."""
        if self.hooks_running:
            return False
        return not self.run.in_pipeline or called_by_method_of(self.pipe)

    def _set_timesteps(self, original: Callable, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if not self._is_the_loops_own():
            return result
        if not self.run.in_pipeline:
            self.run = RunState()
        self.run.begin(len(self._scheduler.timesteps))
        for listener in self.on_timesteps:
            listener()
        self.run.schedule = Schedule.of(self._scheduler)
        return result

    def _step(self, original: Callable, *args: Any, **kwargs: Any) -> Any:
        if not self._is_the_loops_own():
            return original(*args, **kwargs)
        self._refuse_steps_back()
        if self.on_guided or self.on_sample:
            given = inspect.signature(original).bind(*args, **kwargs)
            bound = given.arguments
            for on_sample in self.on_sample:
                bound["sample"] = on_sample(bound["sample"])
            for on_guided in self.on_guided:
                arguments = (bound["model_output"], bound["timestep"], bound["sample"])
                bound["model_output"] = on_guided(*arguments)
            args, kwargs = given.args, given.kwargs
        result = original(*args, **kwargs)
        self.run.step += 1
        self.run.call = 0
        self.run.prepared = None
        self.run.reached = getattr(self._scheduler, "step_index", None)
        for listener in self.on_step:
            listener()
        return result

    def _refuse_steps_back(self) -> None:
        """Refuse a loop that sets its scheduler back to step twice from one place (Cosmos 1).

        Raises:
            EngineError: Naming the pipeline.
        """
        at = getattr(self._scheduler, "step_index", None)
        reached = self.run.reached
        if not self.run.in_pipeline or at is None or reached is None:
            return
        if at < reached:
            raise EngineError(
                f"{type(self.pipe).__name__} sets its {type(self._scheduler).__name__} back and "
                "steps twice from one place, so that its steps cannot be counted; hook its "
                "denoiser by hand, with `branches=`"
            )

    def _note_call(self, given: Mapping[str, Any]) -> None:
        """Keep what the call itself says of its words: some encode images by another method."""
        self._note_assumed(given, inspect.signature(type(self.pipe).__call__))
        if any(part.of_call for part in self.spec.text_parts):
            self._note_prompts(given)

    def _encode_prompt(self, original: Callable, *args: Any, **kwargs: Any) -> Any:
        if self.run.in_pipeline and called_by_method_of(self.pipe):
            signature = inspect.signature(original)
            given = signature.bind(*args, **kwargs).arguments
            self._note_prompts(given)
            self._note_assumed(given, signature)
        return original(*args, **kwargs)

    def _note_assumed(self, given: Mapping[str, Any], signature: inspect.Signature) -> None:
        """Keep why words cannot be told in a run whose arguments have them lie elsewhere."""
        for name in (name for part in self.spec.text_parts for name in part.assumed):
            taken = name in given and name in signature.parameters
            if taken and differs(given[name], _usual(self.pipe, signature, name)):
                self.run.untold = (
                    f"this run of {type(self.pipe).__name__} was given another {name}= than "
                    "the class's own, which the places of words depend on"
                )

    def _note_prompts(self, bound: Mapping[str, Any]) -> None:
        """Keep the prompts that the pipeline encodes: those of its first call are the prompt's."""
        run = self.run
        run.encodings += 1
        if "do_classifier_free_guidance" in bound:
            run.guided = bool(bound["do_classifier_free_guidance"])
        elif "guidance_scale" in bound:  # Bria FIBO
            run.guided = bound["guidance_scale"] > 1
        if bound.get("max_sequence_length") is not None:
            run.max_length = int(bound["max_sequence_length"])
        encode = getattr(type(self.pipe), "encode_prompt", type(self.pipe).__call__)
        known = inspect.signature(encode).parameters
        apart = self.spec.guidance == "calls" or "negative_prompt" not in known
        named = {1: "cond", 2: "uncond"} if apart else {1: "cond"}
        branch = named.get(run.encodings)
        prompt = bound.get("prompt")
        if branch is None or prompt is None:
            return
        count = 1 if isinstance(prompt, str) else len(prompt)
        # Some encode each prompt once and repeat the embeddings after that.
        repeats = {"num_images_per_prompt", "num_videos_per_prompt"} & set(known)
        images = images_per_prompt(bound if repeats else run.asked or {})
        run.prompts[branch] = self.prompts_of_call(bound, "", count, images)
        if not apart or "negative_prompt" in bound:
            run.prompts["uncond"] = self.prompts_of_call(bound, "negative_", count, images)

    def prompts_of_call(
        self, bound: Mapping[str, Any], kind: str, count: int, images: int
    ) -> list[PartPrompts]:
        """For each sample, what each part of the text stream was made from."""
        first = bound.get(f"{kind}prompt") or ""
        columns = []
        for part in self.spec.text_parts:
            given = bound.get(kind + part.prompt) or first
            several = [given] if isinstance(given, str) else list(given)
            columns.append(several * count if len(several) == 1 else several)
        return [row for row in zip(*columns, strict=True) for _ in range(images)]

    @contextlib.contextmanager
    def _cache_context(
        self, original: Callable, name: str, *args: Any, **kwargs: Any
    ) -> Iterator[None]:
        run = self.run
        before, run.named_branch = run.named_branch, name.removeprefix("pred_")  # of guiders
        try:
            with original(name, *args, **kwargs):
                yield
        finally:
            run.named_branch = before


def _usual(pipe: Any, signature: inspect.Signature, name: str) -> Any:
    """What an argument of `encode_prompt`, or of the call, is where a user gives none."""
    call = inspect.signature(type(pipe).__call__).parameters
    return (call[name] if name in call else signature.parameters[name]).default


def recomputing() -> bool:
    """Whether the code runs inside a backward pass (gradient checkpointing)."""
    return torch._C._current_graph_task_id() != -1
