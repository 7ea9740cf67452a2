"""Conditions on the rows of a store, by the columns of its index."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from diffusion_lens.activations import files
from diffusion_lens.errors import StoreError
from diffusion_lens.hook_points import match_names

SHOWN = ("site", "prompt", "seed", "step", "timestep", "branch", "block", "position", "grid")
"""The columns that users see and filter by."""

NUMBERS = (int, float, np.number)


def condition_of(column: str, value: Any, sites: Sequence[str]) -> slice | list[Any]:
    """A condition of `where` as a slice of numbers, or a list of values.

    Args:
        column: The column.
        value: What was given.
        sites: The names that a pattern of sites may mean.

    Raises:
        StoreError: If the column cannot have such values.
        UnknownHookPointError: If a site matches none.
    """
    if isinstance(value, slice):
        if column in files.TEXTS or value.step not in (None, 1):
            raise StoreError(f"{column}={value!r}: a slice of numbers has two ends and no step")
        ends = [end for end in (value.start, value.stop) if end is not None]
        if not ends or any(not isinstance(end, NUMBERS) or end < 0 for end in ends):
            raise StoreError(
                f"{column}={value!r}: the ends of a slice are values of this column, numbers from "
                "0 on, and one of them is given; they do not count from the end"
            )
        return value
    one = isinstance(value, str) or not isinstance(value, Iterable)
    several = [value] if one else list(value)
    if column == "site":
        return [name for one in several for name in match_names(one, sites, model="this store")]
    wanted = str if column in files.TEXTS else NUMBERS
    wrong = [
        one
        for one in several
        if not (isinstance(one, wanted) or (one is None and column in ("block", "grid")))
    ]
    if wrong:
        kind = "texts" if wanted is str else "numbers"
        raise StoreError(f"{column}={value!r}: this column holds {kind}")
    return [one.item() if isinstance(one, np.generic) else one for one in several]


def expression_of(conditions: Mapping[str, Sequence[Any]]) -> Any:
    """Conditions as pyarrow has them; None for none."""
    fields = files.needed("pyarrow.compute", extra="activations")
    found = None
    for column, several in conditions.items():
        for condition in several:
            one = _one_expression(fields, column, condition)
            found = one if found is None else found & one
    return found


def _one_expression(fields: Any, column: str, condition: slice | list[Any]) -> Any:
    one = fields.field(column)
    if isinstance(condition, slice):
        found = one.is_valid()
        if condition.start is not None:
            found &= one >= condition.start
        if condition.stop is not None:
            found &= one < condition.stop
        return found
    values = [value for value in condition if value is not None]
    found = one.isin(values)
    return found | one.is_null() if None in condition else found


def as_array(table: Any, name: str) -> np.ndarray:
    """A column as numpy has it; texts as texts, what is missing as -1 or an empty text."""
    column = table.column(name)
    if name in files.TEXTS:
        column = column.cast("string").fill_null("")
        return np.asarray(column.to_numpy(zero_copy_only=False), dtype=str)
    return column.fill_null(-1).to_numpy()
