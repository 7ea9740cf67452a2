"""Whether two descriptions say the same.

Descriptions hold functions, which Python compares by identity: a notebook cell that runs twice
makes an equal description of other functions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import FunctionType
from typing import Any

DEEPEST = 12
"""Functions may refer to themselves; what is nested deeper counts as different."""


def is_same(one: Any, other: Any, *, depth: int = 0) -> bool:
    """Whether two values are equal, functions by their code and by what they close over."""
    if one is other:
        return True
    if type(one) is not type(other) or depth > DEEPEST:
        return False
    if isinstance(one, FunctionType):
        return one.__code__ == other.__code__ and _all_same(_kept(one), _kept(other), depth)
    if dataclasses.is_dataclass(one):
        fields = [field.name for field in dataclasses.fields(one)]
        values = [tuple(getattr(each, name) for name in fields) for each in (one, other)]
        return _all_same(values[0], values[1], depth)
    if isinstance(one, Mapping):
        return list(one) == list(other) and _all_same(
            tuple(one.values()), tuple(other.values()), depth
        )
    if isinstance(one, tuple | list):
        return _all_same(tuple(one), tuple(other), depth)
    return bool(one == other)


def _all_same(one: tuple[Any, ...], other: tuple[Any, ...], depth: int) -> bool:
    return len(one) == len(other) and all(
        is_same(a, b, depth=depth + 1) for a, b in zip(one, other, strict=True)
    )


def _kept(function: FunctionType) -> tuple[Any, ...]:
    cells = tuple(cell.cell_contents for cell in function.__closure__ or ())
    return (function.__defaults__, function.__kwdefaults__, cells)
