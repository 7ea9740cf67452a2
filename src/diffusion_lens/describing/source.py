"""Python source of descriptions: values written out, defaults left out, lines not too long."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

WIDTH = 100
"""Of a line, as in the project's own files."""


@dataclasses.dataclass(frozen=True)
class Code:
    """Source that is written as it is."""

    text: str


@dataclasses.dataclass(frozen=True)
class Calling:
    """A call: what is called, and its arguments.

    Attributes:
        name: As it is written.
        args: By position.
        kwargs: By name.
    """

    name: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def written(value: Any, indent: int = 0, lead: int = 0) -> str:
    """The source of a value.

    Args:
        value: Numbers, strings, containers, descriptions, `Code` or `Calling`.
        indent: How far in its line begins.
        lead: How much of that line is taken by what stands before it.
    """
    flat = _flat(value)
    opened, items, closed = _parts(value)
    if not items or indent + lead + len(flat) + 1 <= WIDTH:
        return flat
    inner = indent + 4
    lines = [f"{' ' * inner}{key}{written(one, inner, len(key))}," for key, one in items]
    return "\n".join([opened, *lines, " " * indent + closed])


def _flat(value: Any) -> str:
    if isinstance(value, Code):
        return value.text
    opened, items, closed = _parts(value)
    if not closed:
        return opened
    inside = ", ".join(key + _flat(one) for key, one in items)
    comma = "," if isinstance(value, tuple) and len(value) == 1 else ""
    return f"{opened}{inside}{comma}{closed}"


def _parts(value: Any) -> tuple[str, list[tuple[str, Any]], str]:
    """What opens a value, what lies in it (each with what stands before it), what closes it."""
    if isinstance(value, Code):
        return value.text, [], ""
    if isinstance(value, Calling):
        items = [("", one) for one in value.args]
        return f"{value.name}(", items + [(f"{k}=", v) for k, v in value.kwargs.items()], ")"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _parts(of_dataclass(value))
    if isinstance(value, Mapping):
        return "{", [(f"{_flat(key)}: ", one) for key, one in value.items()], "}"
    if isinstance(value, tuple):
        return "(", [("", one) for one in value], ")"
    if isinstance(value, str):
        plain = '"' not in value and "\\" not in value and value.isprintable()
        return f'"{value}"' if plain else repr(value), [], ""
    return repr(value), [], ""


def of_dataclass(value: Any, *, name: str = "", base: Any = None) -> Calling:
    """The call that makes a dataclass.

    Args:
        value: The dataclass.
        name: How its class is written.
        base: Whose fields need not be written; its class's defaults where left out.
    """
    fields = dataclasses.fields(value)
    given = {one.name: getattr(value, one.name) for one in fields}
    usual = {one.name: _default(one) if base is None else getattr(base, one.name) for one in fields}
    changed = {key: one for key, one in given.items() if one != usual[key]}
    if base is not None:
        return Calling("replace", (Code(name),), changed)
    first: list[Any] = []
    for key in given:  # leading fields without defaults go by position
        if usual[key] is not dataclasses.MISSING or key not in changed:
            break
        first.append(changed.pop(key))
    return Calling(name or type(value).__name__, tuple(first), changed)


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default
