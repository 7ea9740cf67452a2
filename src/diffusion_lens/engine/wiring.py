"""What a model is to the engine: its parts, the hooks on them, and who follows its runs."""

from __future__ import annotations

import contextlib
import operator
import threading
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from torch import nn

from diffusion_lens.architectures.spec import DenoiserSpec
from diffusion_lens.engine.branches import check_stated
from diffusion_lens.engine.companion import Companion
from diffusion_lens.engine.model_parts import ModelParts
from diffusion_lens.engine.registration import Registration
from diffusion_lens.engine.session import Session
from diffusion_lens.engine.steps import StepTracker
from diffusion_lens.engine.taps import Tap, expand
from diffusion_lens.errors import (
    NestedRunError,
    RunError,
    SiteError,
    UnknownHookPointError,
    listing,
)

_HOOKED: WeakKeyDictionary[nn.Module, WeakSet[Wiring]] = WeakKeyDictionary()
"""Who has hooks on a denoiser: two wrappers of one pipeline would act on each other's runs."""


class Wiring(ModelParts):
    """A model's parts, and whatever is attached to them.

    Attributes:
        tracker: Follows the pipeline through its steps.
        registrations: The hooks that are on.
    """

    def __init__(
        self, pipe: Any, which: str | None = None, spec: DenoiserSpec | None = None
    ) -> None:
        """Look up the denoiser, and follow it; see `ModelParts`."""
        super().__init__(pipe, which, spec)
        self.tracker = StepTracker(self.pipe, self.denoiser, self.spec)
        self.tracker.on_call.append(self._before_a_call)
        self.tracker.on_end.append(self._after_a_call)
        self.tracker.on_evaluation_by_hand.append(self._refuse_hooks_of_other_threads)
        self.registrations: list[Registration] = []
        self._session: Session | None = None
        self._attached_to: list[object] = []

    # -- hooks --------------------------------------------------------------------------------

    def has_place(self, registration: Registration) -> bool:
        """Whether the hook points that a hook asks for exist."""
        try:
            expand(
                [registration],
                self.points,
                model=self.called,
                branches=self.tracker.known_branches(),
                asked_for=self.asked_for,
            )
        except (UnknownHookPointError, SiteError):
            return False
        return True

    @property
    def has_backward_hooks(self) -> bool:
        """Whether a hook waits for gradients."""
        return any(registration.backward for registration in self.registrations)

    def register(self, registrations: Sequence[Registration]) -> None:
        """Make these the hooks that are on; on an error those before stay as they were.

        Raises:
            NestedRunError: While the model runs.
            RunError: If another wrapper of the same denoiser has hooks on.
        """
        self.tracker.refuse_while_running("hooks were changed")
        planned = None
        if registrations:
            self.refuse_other_wrappers()
            self.tracker.follow(self.denoiser)
            points, tracker = self.points, self.tracker
            second = None if self.companion is None else self.companion.start(tracker)
            planned = Session(
                tracker,
                points,
                registrations,
                model=self.called,
                asked_for=self.asked_for,
                second=second,
            )
        before, self.registrations = self.registrations, list(registrations)
        self._detach()
        if planned is None:
            self.tracker.forget()
            return
        try:
            self._attach(planned)
        except BaseException:
            self.registrations = []
            if before:
                self.register(before)
            raise

    def _attach(self, session: Session) -> None:
        session.__enter__()
        self._session = session
        self._attached_to = self.attached_to()
        for denoiser in session.denoisers.values():
            _HOOKED.setdefault(denoiser, WeakSet()).add(self)

    def _detach(self) -> None:
        if self._session is None:
            return
        session, self._session = self._session, None
        for denoiser in session.denoisers.values():
            _HOOKED.get(denoiser, WeakSet()).discard(self)
        session.__exit__(None, None, None)

    def _keep(self, registrations: Sequence[Registration]) -> None:
        """Take off all others, whose contexts may still be open."""
        for one in self.registrations:
            one.dropped = one not in registrations
        self.register(registrations)

    @contextlib.contextmanager
    def registered(self, registrations: Sequence[Registration]) -> Iterator[None]:
        """Keep hooks on while the context is open.

        Raises:
            NestedRunError: If another thread keeps its hooks on this model.
        """
        self._refuse_hooks_of_other_threads()
        for registration in registrations:
            registration.thread = threading.get_ident()
        self.register([*self.registrations, *registrations])
        try:
            yield
        finally:
            for registration in registrations:
                registration.closed = True
            self._take_off_what_is_closed()

    def _take_off_what_is_closed(self) -> None:
        """Leave no hook of a closed context, whatever becomes of the others.

        Raises:
            NestedRunError: While the model runs; closed hooks are deaf until they come off.
            DiffusionLensError: If the others cannot be attached any more; then none is left.
        """
        kept = [one for one in self.registrations if not one.closed]
        if len(kept) == len(self.registrations):
            return
        try:
            self.register(kept)
        except NestedRunError:
            raise
        except BaseException:
            self._detach()
            self.registrations = []
            raise

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Take the hooks off while the context is open, in the midst of a run, too.

        Hooks that are put on inside are on. The run goes on being followed afterwards: what happens
        inside must not step its scheduler.
        """
        before, session = self.registrations, self._session
        self.registrations = []
        self._detach()
        try:
            yield
        finally:
            added, self.registrations = self.registrations, []
            self._detach()
            if added or any(one.closed for one in before):
                self.register([*(one for one in before if not one.closed), *added])
            elif session is not None:
                self.registrations = before
                self._attach(session)

    def taps_of(self, registrations: Sequence[Registration]) -> list[Tap]:
        """Where some registrations are attached."""
        if self._session is None:
            return []
        wanted = set(map(id, registrations))
        return [
            tap
            for taps in self._session.taps.values()
            for tap in taps
            if id(tap.registration) in wanted
        ]

    @contextlib.contextmanager
    def accompanied_by(self, companion: Companion) -> Iterator[None]:
        """Let something run beside the main pass while the context is open."""
        self.companion = companion
        self.tracker.companion_tokens = dict(companion.tokens())
        try:
            yield
        finally:
            self.companion = None
            self.tracker.companion_tokens = {}
            self._keep([one for one in self.registrations if self.has_place(one)])

    @contextlib.contextmanager
    def batch_holds(self, branches: Sequence[str] | None) -> Iterator[None]:
        """Say what the batch of the denoiser holds while the context is open.

        Raises:
            RunError: If these are no names.
        """
        before, stated = self.tracker.branches, check_stated(branches)
        self.tracker.branches = stated or before
        try:
            yield
        finally:
            self.tracker.branches = before

    # -- runs ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def following(self) -> Iterator[StepTracker]:
        """Follow the pipeline's steps while the context is open, hooks or none."""
        self.tracker.refuse_while_running("the model was run")
        self.refuse_other_wrappers()
        if self._session is not None:
            self._follow_new_parts()
            yield self.tracker
            return
        self.tracker.follow(self.denoiser)
        with self.tracker.attached() as tracker:
            try:
                yield tracker
            finally:
                tracker.forget()

    def refuse_other_wrappers(self) -> None:
        """Refuse to go on while another wrapper has hooks on the same denoiser.

        Raises:
            RunError: Naming its hooks and how to take them off.
        """
        others = self._others()
        if others:
            hooks = [repr(one) for other in others for one in other.registrations]
            raise RunError(
                f"another HookedDiffusion of this {self.called} has hooks on, which would act here "
                f"without being recorded: {listing(hooks)}. Use that wrapper, leave its context, "
                "or take them off with `model.reset_hooks(including_others=True)`"
            )

    def release_others(self) -> None:
        """Take off the hooks that other wrappers have on the same denoiser."""
        for other in self._others():
            other._keep([])

    def _others(self) -> list[Wiring]:
        found = (one for each in self.denoisers.values() for one in _HOOKED.get(each, ()))
        return [one for one in dict.fromkeys(found) if one is not self]

    def _before_a_call(self) -> None:
        """What is checked before each call of the pipeline, the user's own included."""
        self._refuse_hooks_of_other_threads()
        self.refuse_other_wrappers()
        self._follow_new_parts()

    def _after_a_call(self) -> None:
        """What was closed in the midst of the call comes off."""
        if not self.tracker.run.in_pipeline:
            self._take_off_what_is_closed()

    def _refuse_hooks_of_other_threads(self) -> None:
        others = [
            one for one in self.registrations if one.thread not in (None, threading.get_ident())
        ]
        if others:
            shown = listing([repr(one) for one in others])
            raise NestedRunError(
                f"another thread opened hooks on this model: {shown}. They would act here as well: "
                "run where the hooks were opened, put lasting hooks on "
                "with `add_hook`, or wrap a pipeline with modules of its own for each thread"
            )

    def _follow_new_parts(self) -> None:
        """Attach the hooks anew where the pipeline has other parts than at that time."""
        if self._session is None:
            return
        if not _same_objects(self._attached_to, self.attached_to()):
            self.register(self.registrations)
        else:
            self._session.refuse_what_hides_hooks()


def _same_objects(ones: Sequence[object], others: Sequence[object]) -> bool:
    return len(ones) == len(others) and all(map(operator.is_, ones, others))
