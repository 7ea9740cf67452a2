"""Calling hooks: what each sees, what counts as an edit, and how edits go back.

A hook sees a copy of its part (a read-only hook sees the value itself). Returning a tensor is an
edit, and so is changing the copy in place. Where autograd records, the model goes on with the very
tensor that the hook saw, so that gradients with respect to it exist.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion_lens.engine.branches import Rows
from diffusion_lens.engine.evaluation import Evaluation
from diffusion_lens.engine.registration import Registration, describe
from diffusion_lens.engine.selection import put, take
from diffusion_lens.engine.steps import recomputing
from diffusion_lens.engine.taps import Tap, firing_order
from diffusion_lens.errors import DeadHookPointError, EngineError, HookReturnError
from diffusion_lens.hook_points.context import HookContext
from diffusion_lens.hook_points.point import HookPoint


class Running(threading.local):
    """How many hooks of any model are being called now on a thread, one inside the other."""

    depth: int = 0


RUNNING = Running()
"""A hook may run another model: what listens to products listens to its own call alone."""


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
        part = ((0, at), *tap.selection(evaluation, branch, lengths).part)
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
    text = point.stream == "txt" or point.name.endswith("hook_pooled_text_emb")
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
    if given.is_inference():  # such tensors count no versions, so edits in place would go unseen
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


def _copy(value: Tensor) -> Tensor:
    """A clone whose in-place changes can be seen, under inference mode too."""
    if value.is_inference() or torch.is_inference_mode_enabled():
        with torch.inference_mode(False):
            return value.clone()
    return value.clone()
