"""Putting hooks on a model and taking them off."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TypeVar

from diffusion_lens.border import public
from diffusion_lens.engine.registration import HookFunction, Registration
from diffusion_lens.errors import RunError
from diffusion_lens.hook_points.site import Site, Where
from diffusion_lens.hooked_diffusion.silence import hooks_on
from diffusion_lens.hooked_diffusion.wired import Wired

Hook = tuple[Where, HookFunction]
Model = TypeVar("Model", bound="Hooking")


class Hooking(Wired):
    """The part of `HookedDiffusion` that keeps hooks."""

    @public
    @contextlib.contextmanager
    def hooks(
        self: Model,
        fwd_hooks: Sequence[Hook] = (),
        bwd_hooks: Sequence[Hook] = (),
        *,
        branches: Sequence[str] | None = None,
    ) -> Iterator[Model]:
        """Keep hooks on while the context is open; they fire on `model.pipe(...)` calls, too.

        Args:
            fwd_hooks: (name or Site, function) pairs.
            bwd_hooks: The same for gradients.
            branches: What the batch of a denoiser called by hand holds, in order, such as
                `("uncond", "cond")`.

        Raises:
            UnknownHookPointError: If a name matches nothing.
            SiteError: If a Site selects nothing.
            HookNeverFiredError: At the end, if the model ran and a hook never saw a value.
        """
        registrations = [_registration(*pair) for pair in _pairs(fwd_hooks)]
        registrations += [_registration(*pair, backward=True) for pair in _pairs(bwd_hooks)]
        with self.wiring.batch_holds(branches), hooks_on(self.wiring, registrations):
            yield self

    @public
    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Take the active hooks off while the context is open, in the midst of a run, too.

        For further evaluations of the denoiser that are no steps of the run.
        """
        with self.wiring.paused():
            yield

    @public
    def add_hook(
        self,
        where: Where,
        fn: HookFunction,
        *,
        dir: str = "fwd",
        is_permanent: bool = False,
    ) -> None:
        """Put a hook on until `reset_hooks` takes it off.

        Args:
            where: A name or Site.
            fn: The function.
            dir: `"fwd"` for activations, `"bwd"` for gradients.
            is_permanent: Survive `reset_hooks()`.
        """
        if dir not in ("fwd", "bwd"):
            raise RunError(f"dir={dir!r}: a hook is 'fwd' or 'bwd'")
        added = _registration(where, fn, backward=dir == "bwd", permanent=is_permanent)
        self.wiring.register([*self.wiring.registrations, added])

    @public
    def add_perma_hook(self, where: Where, fn: HookFunction, *, dir: str = "fwd") -> None:
        """Put a hook on that survives `reset_hooks()`."""
        self.add_hook(where, fn, dir=dir, is_permanent=True)

    @public
    def reset_hooks(
        self, *, including_permanent: bool = False, including_others: bool = False
    ) -> None:
        """Take off the hooks that `add_hook` put on; those of open contexts stay.

        Args:
            including_permanent: The permanent ones as well.
            including_others: All hooks of other wrappers of the same denoiser, too.
        """
        if including_others:
            self.wiring.release_others()
        kept = [
            one
            for one in self.wiring.registrations
            if one.thread is not None or (one.permanent and not including_permanent)
        ]
        self.wiring.register(kept)

    @property
    def has_backward_hooks(self) -> bool:
        """Whether a hook waits for gradients."""
        return self.wiring.has_backward_hooks

    @property
    def registrations(self) -> tuple[Registration, ...]:
        """The hooks that are on, in the order of registration: `.site`, `.fn`, `.backward`."""
        return tuple(self.wiring.registrations)


def _registration(
    where: Where, fn: HookFunction, *, backward: bool = False, permanent: bool = False
) -> Registration:
    if not callable(fn):
        raise RunError(f"a hook is a function fn(activation, hook), got {fn!r}")
    mark = bool(getattr(fn, "read_only", False)) and not backward
    return Registration(Site.of(where), fn, backward, mark, permanent)


def _pairs(hooks: Sequence[Hook]) -> Sequence[Hook]:
    """Hooks as given, if they are (where, function) pairs."""
    wrong = [one for one in hooks if not isinstance(one, tuple | list) or len(one) != 2]
    if wrong:
        raise RunError(
            f"hooks are a list of (name or Site, function) pairs, found {wrong[0]!r}; a single "
            "hook is `fwd_hooks=[(name, fn)]`"
        )
    return hooks
