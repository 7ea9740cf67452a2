"""Calling hooks: what each sees, what counts as an edit, and how edits go back.

A hook sees a copy of its part (a read-only hook sees the value itself). Returning a tensor is an
edit, and so is changing the copy in place. Where autograd records, the model goes on with the very
tensor that the hook saw, so that gradients with respect to it exist.
"""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffusion_lens.border import public
from diffusion_lens.engine.branches import Rows
from diffusion_lens.engine.evaluation import Evaluation
from diffusion_lens.engine.selection import (
    Index,
    Part,
    contiguous,
    numbers,
    put,
    size_of,
    take,
    token_index,
)
from diffusion_lens.engine.steps import recomputing
from diffusion_lens.errors import DeadHookPointError, EngineError, HookReturnError, RunError
from diffusion_lens.hook_points.context import HookContext
from diffusion_lens.hook_points.point import HookPoint
from diffusion_lens.hook_points.site import Site

HookFunction = Callable[[Tensor, HookContext], Tensor | None]
PLACES_KEPT = 8
"""How many prompts and sizes a hook remembers its selection for."""

GUIDED = "guided"
"""The branch of what comes after guidance, where the branches are one."""


class Running(threading.local):
    """How many hooks of any model are being called now on a thread, one inside the other."""

    depth: int = 0


RUNNING = Running()
"""A hook may run another model: what listens to products listens to its own call alone."""


@dataclass
class Fired:
    """How often one hook fired at one point, and what it changed.

    Attributes:
        shown: How often it was shown a value, or waited for its gradient.
        steps: At which steps.
        heads: The heads that it saw, as (block, head) pairs.
        calls: How often it was called.
        edits: How often it changed what it saw.
        change: Sum of the mean absolute changes.
        absent: Why the run had no such value, where it is known.
    """

    shown: int = 0
    steps: set[int] = field(default_factory=set)
    heads: set[tuple[int | None, int]] = field(default_factory=set)
    calls: int = 0
    edits: int = 0
    change: Tensor | None = None
    absent: str = ""

    def saw(self, context: HookContext) -> None:
        """Note that the hook is shown a value."""
        self.shown += 1
        if context.step not in self.steps:
            self.steps.add(context.step)
            self.heads.update((context.block, head) for head in context.heads or ())

    def edited(self, before: Tensor, after: Tensor) -> None:
        """Count an edit and add up its mean absolute change, on the device."""
        difference = (after.detach() - before.detach()).abs().mean(dtype=torch.float32)
        self.change = difference if self.change is None else self.change + difference
        self.edits += 1


@dataclass(eq=False)
class Registration:
    """A hook function and where it goes.

    Attributes:
        site: Where.
        fn: The function.
        backward: Whether it gets gradients instead of activations.
        read_only: Whether it promises to leave the activation alone.
        permanent: Whether `reset_hooks` leaves it in place.
        fired: What happened, by hook-point name.
        memory: What the engine uses again from step to step, for readers that keep nothing.
        thread: The thread whose context keeps it on; None where it stays on until taken off.
    """

    site: Site
    fn: HookFunction
    backward: bool = False
    read_only: bool = False
    permanent: bool = False
    fired: dict[str, Fired] = field(default_factory=lambda: defaultdict(Fired))
    memory: Any = None
    thread: int | None = None

    def __repr__(self) -> str:
        """Site and function, as a report shows them."""
        return f"{self.site!r}: {describe(self.fn)}"


def describe(fn: object) -> str:
    """A short name of a hook function: its repr where it has a readable one."""
    name = getattr(fn, "__qualname__", None)
    return repr(fn) if name is None else name.rsplit("<locals>.", 1)[-1]


@public
def read_only(fn: HookFunction) -> HookFunction:
    """Promise that a hook function never edits, so that it is shown the value without a copy.

    Changing the value all the same is an error.

    Args:
        fn: Any callable. One that takes no attributes (a bound method) comes back wrapped.
    """
    if not callable(fn):
        raise RunError(f"read_only takes a hook function fn(activation, hook), got {fn!r}")
    try:
        fn.read_only = True  # type: ignore[attr-defined]
    except AttributeError:  # of methods, of builtins, of classes with slots or frozen ones
        return ReadOnly(fn)
    return fn


@dataclass(frozen=True)
class ReadOnly:
    """A hook function that cannot be marked itself, with the mark of `read_only`."""

    fn: HookFunction
    read_only = True

    @property
    def keeps(self) -> bool:
        """Whether tensors are kept as they come."""
        return getattr(self.fn, "keeps", True)

    def __call__(self, activation: Tensor, hook: HookContext) -> Tensor | None:
        """Call it."""
        return self.fn(activation, hook)

    def __repr__(self) -> str:
        """As a report shows it."""
        return describe(self.fn)


@dataclass(frozen=True)
class Place:
    """What a Site selects at one hook point, for given token counts.

    Attributes:
        index: Indices by axis name; None is the whole axis.
        part: The same as (dimension, index) pairs, whole axes left out.
        heads: The selected heads as numbers.
        streams: For each token axis, where each stream lies in what is selected.
        whole: Full length of each of these axes.
    """

    index: Mapping[str, Index | None]
    part: Part
    heads: tuple[int, ...] | None
    streams: Mapping[str, Mapping[str, slice | tuple[int, ...]]]
    whole: Mapping[str, int]

    @classmethod
    def of(
        cls, point: HookPoint, index: Mapping[str, Index | None], lengths: Mapping[str, int]
    ) -> Place:
        """Work out the rest from the indices."""
        streams = {
            axis: _stream_parts(sequence, lengths, index.get(axis))
            for axis, sequence in point.sequences.items()
        }
        heads = None if point.heads is None else numbers(index["head"], point.heads)
        whole = {
            axis: sum(lengths[name] for name in sequence)
            for axis, sequence in point.sequences.items()
        }
        if point.heads is not None:
            whole["head"] = point.heads
        return cls(index, axis_part(point.axes, index), heads, streams, whole)


@dataclass(eq=False)
class Tap:
    """One registration at one hook point."""

    registration: Registration
    point: HookPoint
    heads: tuple[int, ...] | None
    places: dict[Any, Place] = field(default_factory=dict)

    def active(self, evaluation: Evaluation, branch: str) -> bool:
        """Whether the hook fires at this step in this branch."""
        site = self.registration.site
        if not site.has_step(evaluation.step):
            return False
        return branch == GUIDED or site.fires_in(branch)

    def place(self, evaluation: Evaluation, branch: str, lengths: Mapping[str, int]) -> Place:
        """What the Site selects here; worked out once for each prompt and size."""
        site = self.registration.site
        by_axis = {"query": site.query, "key": site.key, "pos": site.pos}
        worded = bool(site.words)
        prompts = evaluation.known_prompts(branch) if worded else ()
        state = (branch if worded else "", tuple(lengths.items()), prompts)
        if state not in self.places:
            index: dict[str, Index | None] = {"head": contiguous(self.heads)}
            for axis, sequence in self.point.sequences.items():
                index[axis] = contiguous(
                    token_index(
                        by_axis.get(axis),
                        sequence,
                        lengths,
                        lambda word: evaluation.word(branch, word),
                        where=f"{axis} of {self.point.name}",
                    )
                )
            if len(self.places) > PLACES_KEPT:
                self.places.clear()
            self.places[state] = Place.of(self.point, index, lengths)
        return self.places[state]

    def index(
        self, evaluation: Evaluation, branch: str, lengths: Mapping[str, int]
    ) -> Mapping[str, Index | None]:
        """The selected indices by axis name; missing or None is the whole axis."""
        return self.place(evaluation, branch, lengths).index

    def shape(self, evaluation: Evaluation, branch: str, rows: slice) -> tuple[int, ...] | None:
        """What the hook will see, None where the weights do not tell."""
        lengths = evaluation.tokens(self.point.level)
        whole = self.point.shape(lengths, batch=rows.stop - rows.start)
        if None in whole:
            return None
        index = self.index(evaluation, branch, lengths)
        sizes = zip(self.point.axes, whole, strict=True)
        return tuple(size_of(index.get(axis), size or 0) for axis, size in sizes)

    def context(
        self,
        evaluation: Evaluation,
        branch: str,
        lengths: Mapping[str, int],
        *,
        owned: bool,
    ) -> HookContext:
        """What the hook is told."""
        place = self.place(evaluation, branch, lengths)
        return HookContext(
            name=self.point.name,
            block=self.point.block,
            stream=self.point.stream,
            axes=self.point.axes,
            step=evaluation.step,
            branch=branch,
            heads=place.heads,
            streams=place.streams.get("key", place.streams.get("pos", {})),
            queries=place.streams.get("query", {}),
            whole=place.whole,
            owned=owned,
            part=place.part,
            point=self.point,
            evaluation=evaluation,
        )


def _stream_parts(
    sequence: Sequence[str], lengths: Mapping[str, int], index: Index | None
) -> dict[str, slice | tuple[int, ...]]:
    """Where each stream lies in what is left of an axis after a selection."""
    found: dict[str, slice | tuple[int, ...]] = {}
    start = 0
    kept = None if index is None else numbers(index, sum(lengths[name] for name in sequence))
    for name in sequence:
        stop = start + lengths[name]
        if kept is None:
            found[name] = slice(start, stop)
        else:
            places = tuple(place for place, at in enumerate(kept) if start <= at < stop)
            if places:
                found[name] = contiguous(places) or places
        start = stop
    return found


def call(tap: Tap, given: Tensor, context: HookContext) -> Tensor:
    """Call a hook with a tensor of its own and give back what the model should go on with.

    Raises:
        HookReturnError: If what it returned cannot stand in for what it was given.
    """
    registration = tap.registration
    if registration.backward:
        if given.requires_grad:
            registration.fired[context.name].saw(context)
            given.register_hook(lambda grad: _backward(tap, grad, context))
        return given
    registration.fired[context.name].saw(context)
    version = given._version
    try:
        with running_hook(context):
            returned = registration.fn(given, context)
    except Exception as error:
        error.add_note(
            f"raised by the hook {describe(registration.fn)} at {context.name}, step "
            f"{context.step}, branch {context.branch}, on a tensor of shape {tuple(given.shape)}"
        )
        raise
    registration.fired[context.name].calls += 1
    if returned is None:
        returned = given
    check(returned, given, registration, context)
    if registration.read_only and (returned is not given or given._version != version):
        raise HookReturnError(
            f"the hook {describe(registration.fn)} at {context.name} is marked read-only but "
            "edited the activation; take the mark off, or work on a clone"
        )
    return returned


@contextlib.contextmanager
def running_hook(context: HookContext) -> Iterator[None]:
    """Let the tracker know that a hook is being called: it must not run the model."""
    evaluation: Any = context.evaluation
    evaluation.tracker.hooks_running += 1
    RUNNING.depth += 1
    try:
        yield
    finally:
        RUNNING.depth -= 1
        evaluation.tracker.hooks_running -= 1


def _backward(tap: Tap, grad: Tensor, context: HookContext) -> Tensor | None:
    with running_hook(context):
        returned = tap.registration.fn(grad, context)
    tap.registration.fired[context.name].calls += 1
    if returned is not None:
        check(returned, grad, tap.registration, context)
    return returned


def check(returned: Any, given: Tensor, registration: Registration, context: HookContext) -> None:
    """Refuse what cannot stand in for the activation.

    Raises:
        HookReturnError: On anything but a tensor of the same shape, dtype and device.
    """
    if returned is given:
        return
    where = f"the hook {describe(registration.fn)} at {context.name} (axes {context.axes})"
    if not isinstance(returned, Tensor):
        raise HookReturnError(
            f"{where} returned a {type(returned).__name__}; return a tensor of shape "
            f"{tuple(given.shape)}, or None to leave the activation as it is"
        )
    for what in ("shape", "dtype", "device"):
        wanted, found = getattr(given, what), getattr(returned, what)
        if wanted != found:
            wanted, found = (tuple(wanted), tuple(found)) if what == "shape" else (wanted, found)
            raise HookReturnError(
                f"{where} returned {what} {found}, expected {wanted}; "
                + ("`returned.to(activation)` brings it back" if what != "shape" else "selected "
                   "axes are kept, and broadcasting is not done for you")
            )  # fmt: skip


def fire(
    taps: Sequence[Tap],
    value: Tensor,
    evaluation: Evaluation,
    lengths: Mapping[str, int],
    *,
    rows: Rows | None = None,
) -> Tensor:
    """Run the hooks of one point over a value; the value itself is never written to.

    Args:
        taps: The hooks of the point.
        value: Its value for the whole batch.
        evaluation: The evaluation that is running.
        lengths: Token count of each stream of the block.
        rows: The branches of the batch, where they are not the evaluation's own.

    Returns:
        `value` where nobody edited, otherwise a new tensor.
    """
    given_to_model, value = value, _for_every_sample(taps[0].point, value, evaluation)
    out, mine = value, False
    splice = torch.is_grad_enabled() and value.requires_grad
    if rows is None:
        same_batch(taps[0].point.name, value, evaluation)
    for tap, branch, at in firing_order(taps, evaluation, rows or evaluation.rows):
        part = ((0, at), *tap.place(evaluation, branch, lengths).part)
        before = take(out, part)
        shared = tap.registration.read_only and not splice
        given = before if shared else _copy(before)
        context = tap.context(evaluation, branch, lengths, owned=not shared)
        after, changed = run(tap, given, context)
        if changed:
            edited(tap, before, after)
        if changed or splice or after.requires_grad:
            if not mine:
                out, mine = out.clone(), True
            put(out, part, after)
    return out if mine else given_to_model


def _for_every_sample(point: HookPoint, value: Tensor, evaluation: Evaluation) -> Tensor:
    """Text that serves every sample of a branch, shown with a row for each.

    Flux encodes one negative prompt for all prompts; its first modulation makes a batch of it.
    """
    text = point.stream == "txt" or point.name == "hook_pooled_text_emb"
    if text and value.shape[0] == 1 < evaluation.batch and len(evaluation.rows) == 1:
        return value.expand(evaluation.batch, *value.shape[1:])
    return value


def same_batch(name: str, value: Tensor, evaluation: Evaluation) -> None:
    """Refuse a value whose rows are not those of the denoiser's batch.

    Raises:
        EngineError: As where a processor computes branches apart (PAG).
    """
    if value.shape[0] != evaluation.batch:
        raise EngineError(
            f"{name}: a batch of {value.shape[0]} where the denoiser got {evaluation.batch}; its "
            "branches cannot be told apart"
        )


def run(tap: Tap, given: Tensor, context: HookContext) -> tuple[Tensor, bool]:
    """Call a hook on a tensor of its own; the tensor to go on with, and whether it was edited.

    While gradient checkpointing recomputes, read-only hooks are not called a second time.
    """
    if tap.registration.read_only and recomputing():
        return given, False
    if given.is_inference():
        given = _copy(given)
    version = given._version
    after = call(tap, given, context)
    return after, after is not given or given._version != version


def edited(tap: Tap, before: Tensor, after: Tensor) -> None:
    """Count an edit, and refuse it where it cannot reach the output.

    Raises:
        DeadHookPointError: At a dead point.
    """
    if tap.point.dead:
        raise DeadHookPointError(
            f"{tap.point.name} was edited by {describe(tap.registration.fn)}, which cannot change "
            f"the output: {tap.point.dead}. Read it, or edit an earlier block."
        )
    tap.registration.fired[tap.point.name].edited(before, after)


def firing_order(
    taps: Sequence[Tap], evaluation: Evaluation, rows: Rows
) -> Iterator[tuple[Tap, str, slice]]:
    """Every (tap, branch, rows) that fires now, in the order of the taps."""
    for tap in taps:
        for branch, at in rows:
            if tap.active(evaluation, branch):
                yield tap, branch, at


def axis_part(axes: Sequence[str], index: Mapping[str, Index | None]) -> Part:
    """Indices by axis name as a part; whole axes are left out."""
    found = ((axes.index(name), at) for name, at in index.items() if name in axes)
    return tuple((dim, at) for dim, at in found if at is not None)


def _copy(value: Tensor) -> Tensor:
    """A clone whose in-place changes can be seen, under inference mode too."""
    if value.is_inference() or torch.is_inference_mode_enabled():
        with torch.inference_mode(False):
            return value.clone()
    return value.clone()
