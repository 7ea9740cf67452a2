"""Every exception of the library, and the one way its messages are put together.

A message says what was asked, what was found, the nearest valid thing and what to call.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class DiffusionLensError(Exception):
    """Base class of every error that this library raises on purpose."""


class ArgumentError(DiffusionLensError, TypeError, ValueError):
    """An argument of a type, or outside the range, that a public function takes."""


class UnknownHookPointError(DiffusionLensError, LookupError):
    """A name or pattern matches no hook point of the model."""


class SiteError(DiffusionLensError, ValueError):
    """A Site is malformed, or selects nothing, or selects what does not exist."""


class WordError(DiffusionLensError, LookupError):
    """A word is not in the prompt, or there is no prompt to look it up in."""


class HookReturnError(DiffusionLensError, ValueError):
    """A hook gave back something that cannot stand in for what it was given."""


class DeadHookPointError(DiffusionLensError, ValueError):
    """A hook edited a value that the model computes and then throws away."""


class HookNeverFiredError(DiffusionLensError, RuntimeError):
    """The model ran, but a requested hook never saw a value."""


class UnsupportedModelError(DiffusionLensError, TypeError):
    """The object is no pipeline or denoiser whose architecture is known."""


class MissingClassError(UnsupportedModelError):
    """The installed diffusers has no such class; a newer one has."""


class EngineError(DiffusionLensError, RuntimeError):
    """The model runs in a way that hides what a hook asked for."""


class NestedRunError(EngineError):
    """The model was run, or its hooks were changed, while it was running."""


class RunError(DiffusionLensError, ValueError):
    """The arguments of a run contradict each other or the pipeline."""


class UnknownSettingError(RunError):
    """A pipeline takes no argument of that name.

    Attributes:
        setting: The name.
    """

    def __init__(self, message: str, setting: str) -> None:
        """Say it of a setting."""
        super().__init__(message)
        self.setting = setting


class ConceptError(DiffusionLensError, ValueError):
    """Concepts that cannot be sent through the model."""


class CacheBudgetError(DiffusionLensError, MemoryError):
    """What was asked for does not fit into the byte budget of a cache or a store."""


class CacheFileError(DiffusionLensError, ValueError):
    """A folder does not hold a readable activation cache."""


class CacheKeyError(DiffusionLensError, KeyError):
    """The cache does not hold what was asked for."""

    def __str__(self) -> str:
        """The message itself (a plain KeyError would print its repr)."""
        return str(self.args[0]) if self.args else ""


class ResultError(DiffusionLensError, ValueError):
    """A folder holds no result, or another than was asked for; or a result lacks what was asked."""


class StoreError(DiffusionLensError, ValueError):
    """Activations that cannot be collected, or a folder that holds no whole store of them."""


class PatchingError(DiffusionLensError, ValueError):
    """A patching sweep whose runs, sites, axes or metric do not fit together."""


class FigureError(DiffusionLensError, ValueError):
    """Values, labels and images that do not fit together in one figure."""


class TrainingStateError(DiffusionLensError, ValueError):
    """A folder holds no state of this model's training, or a damaged one."""


class ExtensionError(DiffusionLensError, TypeError):
    """An entry point does not give what its group asks for, or two give one thing, or none does."""


class ContractError(DiffusionLensError, AssertionError):
    """A model breaks the contract that every architecture keeps; the message lists where."""


def closest(asked: str, valid: Iterable[str], *, count: int = 3, cutoff: float = 0.3) -> list[str]:
    """The valid names most similar to `asked`, best first; `cutoff` in [0, 1] leaves out others."""
    return difflib.get_close_matches(asked, list(dict.fromkeys(valid)), n=count, cutoff=cutoff)


def listing(items: Sequence[object], *, most: int = 8) -> str:
    """Items joined by commas, cut after `most` with the number left out."""
    shown = ", ".join(str(item) for item in items[:most])
    return shown if len(items) <= most else f"{shown}, … ({len(items) - most} more)"


def refuse_unknown(
    argument: str, given: object, valid: Iterable[str], *, error: type[DiffusionLensError]
) -> None:
    """Name the choices where an argument is none of them.

    Args:
        argument: Its name.
        given: What was given.
        valid: The choices.
        error: What to raise.

    Raises:
        error: With the choices and the closest one.
    """
    choices = list(valid)
    if given not in choices:
        near = closest(str(given), choices)
        hint = f" Closest: {near[0]!r}." if near else ""
        raise error(f"{argument}={given!r} is none of {choices}.{hint}")
