"""Refusing a run in which something that was asked for never happened."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from diffusion_lens.engine.registration import Fired, Registration, describe
from diffusion_lens.engine.run_state import Seen
from diffusion_lens.engine.taps import Tap
from diffusion_lens.engine.wiring import Wiring
from diffusion_lens.errors import HookNeverFiredError, listing
from diffusion_lens.hook_points.names import SECOND, is_pattern
from diffusion_lens.hook_points.selectors import Indices
from diffusion_lens.showing.one_line import counted

AROUND_GUIDANCE = ("hook_sample", "hook_guided_pred", "hook_pred_x0")
"""Points that a single evaluation does not reach; a pattern may match them all the same."""

Head = tuple[int | None, int]


@contextlib.contextmanager
def hooks_on(wiring: Wiring, registrations: Sequence[Registration]) -> Iterator[None]:
    """Keep hooks on while the context is open, and refuse those that stayed silent in its runs.

    Raises:
        HookNeverFiredError: At the end, if the model ran and a hook never saw a value.
    """
    tracker = wiring.tracker
    total = tracker.total
    with wiring.registered(registrations), tracker.noting() as seen:
        refuse_heads_that_are_not_there(wiring.taps_of(registrations))
        yield
        _refuse_what_was_taken_off(registrations)
        if tracker.total > total or tracker.denoiser is not wiring.denoiser:
            refuse_silent(wiring, registrations, seen)


def refuse_silent(wiring: Wiring, registrations: Sequence[Registration], seen: Seen) -> None:
    """Refuse a run in which a hook missed something; see `refuse_silence`."""
    names: dict[Registration, list[str]] = {registration: [] for registration in registrations}
    for tap in wiring.taps_of(registrations):
        names[tap.registration].append(tap.point.name)
    refuse_silence(
        registrations,
        names,
        branches=sorted(seen.branches),
        steps=seen.steps,
        planned=seen.planned,
        taken=seen.taken,
    )


def _refuse_what_was_taken_off(registrations: Sequence[Registration]) -> None:
    """Refuse hooks that something else took off before they saw anything.

    Raises:
        HookNeverFiredError: Naming the first.
    """
    for registration in registrations:
        if registration.dropped and not any(one.shown for one in registration.fired.values()):
            raise HookNeverFiredError(
                f"{registration!r} was taken off before it saw a value: its hook point went when "
                "concept streams closed, or `reset_hooks(including_others=True)` of another "
                "wrapper took it off. Close contexts in the opposite order of opening them."
            )


def refuse_silence(
    registrations: Sequence[Registration],
    names: Mapping[Registration, Sequence[str]],
    *,
    branches: Sequence[str],
    steps: int | Collection[int],
    planned: int = 0,
    taken: Mapping[str, Collection[int]] | None = None,
) -> None:
    """Refuse a run in which a hook missed a point, a step or a head that it was asked for.

    What counts is what happened since the hooks went on, or since the last run of the model began:
    of several evaluations that were made by hand, all together.

    Args:
        registrations: The hooks.
        names: The hook points that each was attached to.
        branches: The guidance branches that ran.
        steps: The steps that ran, or how many did.
        planned: How many steps an interrupted run would have had. Those that the interruption took
            away are not missed.
        taken: The steps of each denoiser, by what its names begin with.

    Raises:
        HookNeverFiredError: Saying which, and what did run.
    """
    divided = _divided(taken or {})
    ran = sorted(range(steps) if isinstance(steps, int) else steps)
    for registration in registrations:
        pattern = registration.site.name
        exempt = AROUND_GUIDANCE if isinstance(pattern, str) and is_pattern(pattern) else ()
        wanted = [name for name in names.get(registration, ()) if name not in exempt]
        silent = [
            name
            for name in wanted
            if name not in registration.fired or not registration.fired[name].shown
        ]
        if exempt:
            silent = [name for name in silent if not registration.fired[name].absent]
        if silent:
            raise HookNeverFiredError(_never_fired(registration, silent, ran, branches) + divided)
        for name in wanted:
            if registration.fired[name].absent:
                continue
            _refuse_missed_steps(registration, name, ran, planned, divided)
    refuse_missed_heads((one, _heads(one.fired.values())) for one in registrations)


def _never_fired(
    registration: Registration, silent: list[str], ran: list[int], branches: Sequence[str]
) -> str:
    fn, where = describe(registration.fn), f"{listing(silent)} ({registration.site!r})"
    if registration.backward:
        return (
            f"no gradient reaches {fn} at {where}: generation runs without gradients. Use "
            "`model.denoise(...)` inside `model.hooks(bwd_hooks=...)`, with latents, embeddings or "
            "weights that require them, and call backward there."
        )
    absent = next((name for name in silent if registration.fired[name].absent), None)
    if absent is not None:
        return (
            f"{fn} never fired at {absent} ({registration.site!r}): "
            f"{registration.fired[absent].absent}. Or leave it out."
        )
    return (
        f"{fn} never fired at {where}, though the model ran {_called(ran)} in the branches "
        f"{sorted(branches)}. Check steps= and branch=, and that the pipeline does not skip these "
        "blocks."
    )


def _refuse_missed_steps(
    registration: Registration, name: str, ran: Sequence[int], planned: int, divided: str
) -> None:
    """Refuse named steps that the hook did not see.

    Raises:
        HookNeverFiredError: With what to write in their place.
    """
    steps = registration.site.steps
    ends = ran[-1] + 1 if ran else 0
    fired = registration.fired[name].steps
    missed = (step for step in named(steps) if step not in fired and not ends <= step < planned)
    shown = list(itertools.islice(missed, 4))
    if not shown:
        return
    which = listing(shown) if len(shown) < 4 else f"{listing(shown[:3])}, …"
    asked = f"{describe(registration.fn)} was to fire at {name} ({registration.site!r})"
    if shown[0] in ran:
        raise HookNeverFiredError(
            f"{asked}, but did not at {_steps(shown, which)}, which the run had: the pipeline, its "
            "guider or a step cache leaves it out there. Leave those steps out of steps=." + divided
        )
    there = [step for step in fired if registration.site.has_step(step)]
    raise HookNeverFiredError(
        f"{asked}, but the model ran {_called(ran)}: {_steps(shown, which)} never came. Write "
        f"{_instead(steps, sorted(there))}"
    )


def _divided(taken: Mapping[str, Collection[int]]) -> str:
    """Which denoiser took which steps, where there are two."""
    if SECOND not in taken:
        return ""
    first = listing(sorted(taken.get("", ()))) or "none"
    return (
        f" Of two denoisers the first took the steps {first}, and the second, whose hook points "
        f"are `{SECOND}…`, the steps {listing(sorted(taken[SECOND]))}."
    )


def named(steps: Indices | None) -> Iterator[int]:
    """The steps that a selection names one by one; none where it is open at its end."""
    if isinstance(steps, tuple):
        yield from sorted(steps)
    elif isinstance(steps, slice) and steps.stop is not None:
        yield from range(steps.start or 0, steps.stop, steps.step or 1)


def _called(ran: Sequence[int]) -> str:
    if ran and list(ran) != list(range(len(ran))):
        return f"the steps {listing(ran)} alone"
    return f"{counted(len(ran), 'step')} (0 to {len(ran) - 1})"


def _steps(shown: list[int], which: str) -> str:
    return f"{'step' if len(shown) == 1 else 'steps'} {which}"


def _instead(steps: Indices | None, there: list[int]) -> str:
    """What to write for the steps that there are."""
    if not isinstance(steps, slice):
        return f"steps={there}"
    first, every = steps.start or 0, "" if steps.step is None else f", {steps.step}"
    return (
        f"steps=range({there[0]}, {there[-1] + 1}{every}) for those that there are, or "
        f"steps=slice({first}, None{every}) for as many as a run has"
    )


def _heads(fired: Iterable[Fired]) -> set[Head]:
    return {head for one in fired for head in one.heads}


def refuse_heads_that_are_not_there(taps: Sequence[Tap]) -> None:
    """The same check of heads before a run, from where its hooks are attached.

    Raises:
        HookNeverFiredError: If a hook names heads at which none of its Sites puts it.
    """
    met: dict[Registration, set[Head]] = {}
    for tap in taps:
        heads = range(tap.point.heads or 0) if tap.heads is None else tap.heads
        met.setdefault(tap.registration, set()).update((tap.point.block, head) for head in heads)
    refuse_missed_heads(met.items())


def refuse_missed_heads(met: Iterable[tuple[Registration, Collection[Head]]]) -> None:
    """Refuse hooks that name (block, head) pairs at which they are never called.

    One hook may stand on several Sites, which then share its pairs.

    Args:
        met: The heads that each hook has.

    Raises:
        HookNeverFiredError: Naming the pairs and the heads that there were.
    """
    hooks: list[tuple[Registration, set[Head]]] = []
    for registration, heads in met:
        if not getattr(registration.fn, "named_heads", ()):
            continue
        shared = next((found for one, found in hooks if one.fn == registration.fn), None)
        if shared is None:
            hooks.append((registration, set(heads)))
        else:
            shared.update(heads)
    for registration, heads in hooks:
        fn: object = registration.fn
        missed = sorted(set(getattr(fn, "named_heads")) - heads)  # noqa: B009 (not every hook has)
        if missed:
            raise HookNeverFiredError(
                f"{type(fn).__name__} on {registration.site!r} names the (block, head) pairs "
                f"{listing(missed)}, at which it is never called: its Sites have {_there(heads)}. "
                "Leave those pairs out, or widen the Site"
            )


def _there(heads: Collection[Head]) -> str:
    blocks: dict[int | None, list[int]] = {}
    for block, head in sorted(heads, key=lambda one: (one[0] is None, one)):
        blocks.setdefault(block, []).append(head)
    return listing([f"block {block}: heads {listing(found)}" for block, found in blocks.items()])
