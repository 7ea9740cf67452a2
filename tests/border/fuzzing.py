"""Wrong values for every argument of the public functions, and what becomes of them."""

from __future__ import annotations

import contextlib
import io
import signal
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import torch

from diffusion_lens.errors import DiffusionLensError
from tests.border.world import Case

MOST_SECONDS = 20


class Odd:
    """An object of a class that nobody knows."""

    def __repr__(self) -> str:
        return "<odd>"


WRONG: tuple[Any, ...] = (
    None,
    -1,
    0,
    1.5,
    float("nan"),
    float("inf"),
    10**12,
    True,
    "",
    "nonsense",
    b"bytes",
    [],
    [None],
    [[]],
    {},
    {"a": 1},
    Odd(),
    torch.zeros(2),
    torch.zeros(1, 3, 4),
    np.arange(3),
    (1, 2, 3),
    set(),
    lambda *_args, **_more: 1,
    float,
    slice(None),
    range(0),
    complex(1, 2),
    ["a", 1],
)
"""Values of every kind; for most arguments most of them are wrong."""


@dataclass(frozen=True)
class Outcome:
    """What one wrong value came to: `accepted`, `clear`, `pipeline` or `obscure`.

    `pipeline` is a ValueError or TypeError of a diffusers pipeline about its own arguments.
    """

    case: str
    argument: str
    value: str
    kind: str
    error: str = ""


Trial = tuple[Case, str, Any]
"""A case, one of its arguments, and a wrong value for it."""


def trials(cases: Sequence[Case]) -> list[Trial]:
    """Every case with every argument and every value that is not the right one."""
    return [
        (case, argument, value)
        for case in cases
        for argument, right in case.arguments.items()
        for value in WRONG
        if not (value is right or (type(value) is type(right) and _same(value, right)))
    ]


def _same(value: Any, right: Any) -> bool:
    return isinstance(value, int | str | bool | float) and value == right


def outcome(case: Case, argument: str, value: Any) -> Outcome:
    """Call a function with one wrong argument."""
    about = (case.name, argument, " ".join(repr(value).split())[:60])
    try:
        with _quietly(), _limited():
            case.call(**{**case.arguments, argument: value})
    except DiffusionLensError as error:
        return Outcome(*about, "clear", f"{type(error).__name__}: {error}")
    except Exception as error:
        kind = "pipeline" if _is_a_pipelines(error) else "obscure"
        return Outcome(*about, kind, f"{type(error).__name__}: {error}"[:160])
    return Outcome(*about, "accepted")


def _is_a_pipelines(error: Exception) -> bool:
    """Whether a pipeline itself raised it."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    where = "" if last is None else last.tb_frame.f_code.co_filename
    return isinstance(error, TypeError | ValueError) and "diffusers/pipelines/" in where


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Nothing that is refused takes long."""

    def late(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"longer than {MOST_SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(MOST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
