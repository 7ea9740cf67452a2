"""Which evaluation of the denoiser is running: step, guidance branches, prompts, grid."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_lens.architectures.spec import DenoiserSpec
from diffusion_lens.engine.noise import NoiseLevel, Schedule, noise_level
from diffusion_lens.engine.words import word_tokens, words_of
from diffusion_lens.errors import EngineError, WordError

Rows = tuple[tuple[str, slice], ...]
PartPrompts = tuple[str, ...]
"""The prompt of each part of the text stream; mostly the same one."""


class Evaluation:
    """One call of the denoiser."""

    def __init__(self, tracker: StepTracker, arguments: Mapping[str, Any]) -> None:
        """Work out which rows of the batch belong to which guidance branch."""
        self.tracker = tracker
        self.step = tracker.step
        self.arguments = arguments
        self.batch = int(arguments[tracker.spec.latents].shape[0])
        self.rows = tracker.branch_rows(arguments, self.batch)
        self._grids: dict[int, tuple[int, ...]] = {}

    def level(self) -> NoiseLevel:
        """Where on the noise schedule the latents lie."""
        return self.tracker.level(self.arguments.get("timestep"), self.timestep)

    def timestep_known(self) -> float | Tensor:
        """The scheduler's timestep: a number where it is known without waiting for the device."""
        index = self.tracker.schedule_index(self.arguments.get("timestep"), self.step)
        if index is not None and self.tracker.schedule is not None:
            return self.tracker.schedule.timesteps[index]
        found = self.arguments.get("timestep")
        value = torch.as_tensor(math.nan if found is None else found).reshape(-1)[0]
        return value.detach().to(torch.float32, copy=True) * self.tracker.spec.timestep_scale

    def timestep(self) -> float:
        """The scheduler's timestep."""
        return float(self.timestep_known())

    def sigma(self) -> float:
        """The noise level in the scheduler's own units."""
        return self.level().noise

    def grid(self, level: int) -> tuple[int, ...]:
        """Token grid of the image at a resolution level."""
        if level not in self._grids:
            self._grids[level] = self.tracker.grid(self.arguments, level)
        return self._grids[level]

    def tokens(self, level: int) -> dict[str, int]:
        """Token count of each stream at a resolution level."""
        latents = self.arguments[self.tracker.spec.latents]
        text = self.arguments.get(self.tracker.spec.text)
        text = text[0] if isinstance(text, tuple) else text  # image prompts come beside it
        image = latents.shape[1] if latents.ndim == 3 else math.prod(self.grid(level))
        found = {"img": int(image)} | ({} if text is None else {"txt": int(text.shape[1])})
        return found | self.tracker.tokens_beside

    def words(self, branch: str) -> Mapping[str, tuple[int, ...]]:
        """Text-stream indices of the words that lie at the same place in every prompt."""
        prompts = self.tracker.prompts_of(branch)
        found = {}
        for word in words_of(" ".join(prompts[0])):
            with contextlib.suppress(WordError):
                found[word] = self.word(branch, word)
        return found

    def word(self, branch: str, word: str) -> tuple[int, ...]:
        """Text-stream indices of one word of the branch's prompts.

        Raises:
            WordError: If it is missing, or stands elsewhere in another prompt of the batch.
        """
        tracker = self.tracker
        prompts = dict.fromkeys(tracker.prompts_of(branch))
        try:
            places = {
                prompt: word_tokens(tracker.pipe, tracker.spec.text_parts, prompt, word)
                for prompt in prompts
            }
        except WordError as error:
            if branch == "cond":
                raise
            raise WordError(
                f"{error} This is the prompt of branch {branch!r}: give the Site branch='cond' to "
                "look at the prompt alone."
            ) from error
        if len(set(places.values())) > 1:
            where = "; ".join(f"{prompt!r}: {indices}" for prompt, indices in places.items())
            raise WordError(
                f"{word!r} stands at different tokens in the prompts of one batch ({where}); "
                "run these prompts one at a time, or word them alike"
            )
        return next(iter(places.values()))


class StepTracker:
    """Follows a pipeline through its steps.

    A step is counted when the scheduler steps, so PNDM's repeated timestep and Heun's second
    evaluation have numbers of their own. Branches come from the batch, or from the name that a
    pipeline gives each call (`cache_context`). Prompts are those that `encode_prompt` was given.
    """

    def __init__(
        self,
        pipe: Any,
        denoiser: nn.Module,
        spec: DenoiserSpec,
        *,
        branches: Sequence[str] | None = None,
    ) -> None:
        """Follow `denoiser` inside `pipe` (None for a bare denoiser)."""
        self.pipe = pipe
        self.denoiser = denoiser
        self.spec = spec
        self.branches = tuple(branches) if branches else None
        self.step = 0
        self.first_step = 0
        self.call = 0
        self.evaluations = 0
        self._steps_ahead: int | None = None
        self.schedule: Schedule | None = None
        self.current: Evaluation | None = None
        self.prompts: dict[str, list[PartPrompts]] = {}
        self.in_pipeline = False
        self.named_branch: str | None = None
        self._encoded_for_guidance = False
        self.on_start: list[Callable[[], None]] = []
        self.on_evaluation: list[Callable[[Evaluation], None]] = []
        self.on_guided: list[Callable[[Tensor, Any, Tensor], Tensor]] = []
        self.on_sample: list[Callable[[Tensor], Tensor]] = []
        self.on_step: list[Callable[[], None]] = []
        self.on_timesteps: list[Callable[[], None]] = []
        self.tokens_beside: dict[str, int] = {}
        self._grid_of: tuple[Tensor, int, dict[int, tuple[int, ...]]] | None = None
        self.total = 0
        self.seen_branches: set[str] = set()
        self.seen_steps = 0
        self._parameters = list(inspect.signature(type(denoiser).forward).parameters)[1:]

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
        """The evaluation that is running.

        Raises:
            EngineError: If a hooked module is called outside the denoiser, or if gradient
                checkpointing recomputes one of several evaluations.
        """
        if self.current is None:
            raise EngineError(
                "a hooked module ran outside its denoiser; call the pipeline or the denoiser"
            )
        if recomputing() and self.evaluations > 1:
            raise EngineError(
                "gradient checkpointing recomputes activations of one of several evaluations, "
                "and which one cannot be told; run backward after each `model.denoise(...)`, "
                "or switch checkpointing off with `disable_gradient_checkpointing()`"
            )
        return self.current

    def prompts_of(self, branch: str) -> list[PartPrompts]:
        """The prompts of a branch, one for each part of the text stream.

        Raises:
            WordError: If none are known, as when the run was given embeddings.
        """
        found = self.prompts.get(branch)
        if not found:
            raise WordError(
                f"the prompts of branch {branch!r} are not known (the run was given embeddings, or "
                "the denoiser was called by hand); use token indices instead of words"
            )
        return found

    def branch_rows(self, arguments: Mapping[str, Any], batch: int) -> Rows:
        """The rows of the batch that belong to each branch, in batch order."""
        names = self._branch_names(arguments)
        if batch % len(names):
            raise EngineError(
                f"a batch of {batch} cannot hold the branches {names} in equal parts; "
                'say what it holds with `model.hooks(..., branches=("uncond", "cond"))`'
            )
        size = batch // len(names)
        known = len(self.prompts.get("cond", ()))
        if self.branches is None and self.in_pipeline and known and size != known:
            raise EngineError(
                f"a batch of {batch} for {known} prompts does not hold just the branches {names}: "
                f"{type(self.pipe).__name__} has further ones (PAG, image guidance), which are not "
                'described; say what it holds with `model.hooks(..., branches=("uncond", …))`'
            )
        return tuple(
            (name, slice(index * size, (index + 1) * size)) for index, name in enumerate(names)
        )

    def known_branches(self) -> tuple[str, ...]:
        """Every branch that an evaluation of this model can have."""
        return (*self.spec.branches, "skip", *(self.branches or ()))

    def _branch_names(self, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        if self.branches is not None:
            return self.branches
        if arguments.get("skip_layers") is not None:
            return ("skip",)
        if self.spec.guidance == "calls":
            return (self.named_branch or self._branch_of_call(),)
        guided = self.in_pipeline and getattr(
            self.pipe, "do_classifier_free_guidance", self._encoded_for_guidance
        )
        return self.spec.branches if guided else ("cond",)

    def _branch_of_call(self) -> str:
        """The branch of a call that the pipeline gives no name: by its number within the step."""
        if not self.in_pipeline:
            return "cond"
        if self.call >= len(self.spec.branches):
            raise EngineError(
                f"{type(self.pipe).__name__} calls its denoiser {self.call + 1} times in step "
                f"{self.step} without naming the calls, known are {self.spec.branches}; hook its "
                "denoiser by hand with `branches=`"
            )
        return self.spec.branches[self.call]

    @contextlib.contextmanager
    def attached(self) -> Iterator[StepTracker]:
        """Follow the pipeline while the context is open."""
        with contextlib.ExitStack() as undo:
            handles = [
                self.denoiser.register_forward_pre_hook(
                    self._before, with_kwargs=True, prepend=True
                )
            ]
            undo.callback(lambda: [handle.remove() for handle in handles])
            if hasattr(self.denoiser, "cache_context"):
                undo.enter_context(_wrapped(self.denoiser, "cache_context", self._cache_context))
            if self.pipe is not None:
                scheduler = self.pipe.scheduler
                undo.enter_context(_wrapped(scheduler, "set_timesteps", self._set_timesteps))
                undo.enter_context(_wrapped(scheduler, "step", self._step))
                undo.enter_context(_wrapped(self.pipe, "encode_prompt", self._encode_prompt))
                undo.enter_context(_wrapped(self.pipe, "maybe_free_model_hooks", self._run_ends))
            yield self

    def _before(self, _module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._start()
        arguments = dict(zip(self._parameters, args, strict=False)) | kwargs
        self.current = Evaluation(self, arguments)
        self.call += 1
        self.evaluations += 1
        self.total += 1
        self.seen_branches.update(branch for branch, _ in self.current.rows)
        self.seen_steps = max(self.seen_steps, self.step + 1)
        for listener in self.on_evaluation:
            listener(self.current)

    def _start(self) -> None:
        """Clear away what an interrupted run left behind."""
        for listener in self.on_start:
            listener()

    def _set_timesteps(self, original: Callable, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        self.begin_run(len(self.pipe.scheduler.timesteps))
        self.in_pipeline = True
        for listener in self.on_timesteps:
            listener()
        self.schedule = Schedule.of(self.pipe.scheduler)
        return result

    def schedule_index(self, timestep: Any, step: int) -> int | None:
        """Where on the schedule a timestep lies, or None where only the device knows."""
        if self.schedule is None or not self.in_pipeline:
            return None
        scheduler = self.pipe.scheduler
        begun = getattr(scheduler, "begin_index", None) or 0
        counted = begun + step - self.first_step if hasattr(scheduler, "begin_index") else None
        return self.schedule.index(timestep, counted)

    def level(self, timestep: Any, otherwise: Callable[[], float]) -> NoiseLevel:
        """The noise level of a timestep of the loop.

        Args:
            timestep: What the loop handed on.
            otherwise: Gives its value where the schedule does not tell.
        """
        scheduler = self.scheduler()
        index = self.schedule_index(timestep, self.step)
        if index is None or self.schedule is None:
            return noise_level(scheduler, otherwise())
        sigmas = self.schedule.sigmas
        sigma = None if sigmas is None else sigmas[index]
        return noise_level(scheduler, self.schedule.timesteps[index], sigma)

    def grid(self, arguments: Mapping[str, Any], level: int) -> tuple[int, ...]:
        """Token grid of the image; ids that say it are waited for once, not at every evaluation."""
        ids = arguments.get(self.spec.grid_from or "")
        if not isinstance(ids, Tensor) or ids.is_inference():  # which tells of no change in place
            return self.spec.grid(self.denoiser, arguments, level)
        known = self._grid_of
        if known is None or known[0] is not ids or known[1] != ids._version:
            known = self._grid_of = (ids, ids._version, {})
        if level not in known[2]:
            known[2][level] = self.spec.grid(self.denoiser, arguments, level)
        return known[2][level]

    @property
    def steps_ahead(self) -> int | None:
        """How many steps the run will have, as far as the scheduler tells.

        Image-to-image begins within the schedule; schedulers that do not say where give an upper
        bound.
        """
        if self._steps_ahead is None or self.pipe is None:
            return self._steps_ahead
        begun = getattr(self.pipe.scheduler, "begin_index", None) or 0
        return self._steps_ahead - begun if begun < self._steps_ahead else self._steps_ahead

    def forget(self) -> None:
        """Forget the run that was followed, so that nothing of it is taken for the next one's."""
        self.begin_run(None)
        self.current = None
        self.prompts = {}
        self.in_pipeline = False
        self.named_branch = None
        self._grid_of = None

    def begin_run(self, steps_ahead: int | None) -> None:
        """Count steps from 0 again."""
        self.step = 0
        self.first_step = 0
        self.call = 0
        self.evaluations = 0
        self._steps_ahead = steps_ahead

    def _step(self, original: Callable, *args: Any, **kwargs: Any) -> Any:
        if self.on_guided or self.on_sample:
            given = inspect.signature(original).bind(*args, **kwargs)
            bound = given.arguments
            for listener in self.on_sample:
                bound["sample"] = listener(bound["sample"])
            for listener in self.on_guided:
                arguments = (bound["model_output"], bound["timestep"], bound["sample"])
                bound["model_output"] = listener(*arguments)
            args, kwargs = given.args, given.kwargs
        result = original(*args, **kwargs)
        self.step += 1
        self.call = 0
        for listener in self.on_step:
            listener()
        return result

    def _encode_prompt(self, original: Callable, *args: Any, **kwargs: Any) -> Any:
        if not _called_by(self.pipe):
            return original(*args, **kwargs)
        self._start()
        bound = inspect.signature(original).bind(*args, **kwargs).arguments
        prompt = bound.get("prompt")
        self._encoded_for_guidance = bool(bound.get("do_classifier_free_guidance"))
        if self.evaluations or self.in_pipeline:
            self.prompts = {}
            self.evaluations = 0
            self.in_pipeline = False
        if prompt is not None:
            images = int(bound.get("num_images_per_prompt") or 1)
            branch = "uncond" if self.spec.guidance == "calls" and self.prompts else "cond"
            count = 1 if isinstance(prompt, str) else len(prompt)
            self.prompts[branch] = self._prompts(bound, "", count, images)
            if self.spec.guidance == "batched":
                self.prompts["uncond"] = self._prompts(bound, "negative_", count, images)
        return original(*args, **kwargs)

    def _prompts(
        self, bound: Mapping[str, Any], kind: str, count: int, images: int
    ) -> list[PartPrompts]:
        """For each sample, what each part of the text stream was made from."""
        first = bound.get(f"{kind}prompt") or ""
        columns = []
        for part in self.spec.text_parts:
            given = bound.get(kind + part.prompt) or first
            columns.append([given] * count if isinstance(given, str) else list(given))
        return [row for row in zip(*columns, strict=True) for _ in range(images)]

    def _run_ends(self, original: Callable, *args: Any, **kwargs: Any) -> Any:
        self.in_pipeline = False
        return original(*args, **kwargs)

    @contextlib.contextmanager
    def _cache_context(
        self, original: Callable, name: str, *args: Any, **kwargs: Any
    ) -> Iterator[None]:
        before, self.named_branch = self.named_branch, name
        try:
            with original(name, *args, **kwargs):
                yield
        finally:
            self.named_branch = before


def recomputing() -> bool:
    """Whether the code runs inside a backward pass (gradient checkpointing)."""
    return torch._C._current_graph_task_id() != -1


def _called_by(pipe: Any) -> bool:
    """Whether the pipeline's own call is on the stack: prompts are encoded for other ends, too."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "__call__" and frame.f_locals.get("self") is pipe:
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def _wrapped(owner: Any, name: str, wrapper: Callable) -> Iterator[None]:
    """Put `wrapper(original, ...)` in front of a method of one object while the context is open."""
    original = getattr(owner, name, None)
    if original is None:
        yield
        return
    before = owner.__dict__.get(name)

    @functools.wraps(original)
    def method(*args: Any, **kwargs: Any) -> Any:
        return wrapper(original, *args, **kwargs)

    object.__setattr__(owner, name, method)
    try:
        yield
    finally:
        if before is None:
            owner.__dict__.pop(name, None)
        else:
            object.__setattr__(owner, name, before)
