"""From an annotation to a test of a value.

Every item of a list is looked at. Checkers made for inner loops look at one item drawn at random;
whether a user meets an error must not depend on chance.
"""

from __future__ import annotations

import collections.abc
import contextlib
import numbers
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from diffusion_lens.border.ranges import Rule

Test = Callable[[Any], bool]
NUMBERS: dict[Any, type] = {
    int: numbers.Integral,
    float: numbers.Real,
    complex: numbers.Complex,
}
"""What stands for a number: those of numpy too, and whole ones for any. A bool stands for none."""
TEXTS = (str, bytes, bytearray)
"""Sequences of characters, which are no lists of anything."""


def anything(_value: Any) -> bool:
    """The test that every value passes."""
    return True


def test_of(hint: Any) -> Test:
    """The test of whether a value is what an annotation says.

    Args:
        hint: An annotation, evaluated.

    Raises:
        NotImplementedError: If it is of a kind that no public function has used so far.
    """
    if hint is Any or hint is object or isinstance(hint, TypeVar):
        return anything
    if hint is None or hint is types.NoneType:
        return lambda value: value is None
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _any_of([test_of(one) for one in args])
    if origin is Annotated:
        return _keeping(test_of(args[0]), [one for one in args[1:] if isinstance(one, Rule)])
    if origin is Literal:
        return lambda value: any(type(value) is type(one) and value == one for one in args)
    if origin is collections.abc.Callable:
        return _giving(args[-1])
    if origin is type:
        bound = args[0] if isinstance(args[0], type) else object
        return lambda value: isinstance(value, type) and issubclass(value, bound)
    if origin is tuple:
        return _tuple_of(args)
    if isinstance(origin, type) and issubclass(origin, collections.abc.Mapping):
        return _mapping_of(origin, *map(test_of, args))
    if isinstance(origin, type) and issubclass(origin, collections.abc.Iterable):
        return _items_of(origin, test_of(args[0]))
    if isinstance(hint, type):
        return _instance_of(hint)
    raise NotImplementedError(f"the annotation {hint!r} of a public function has no test")


def item_hints(hint: Any, value: Any) -> list[tuple[str, Any, Any]]:
    """(where, item, its annotation) of what a container holds; empty where that is not the point.

    Args:
        hint: An annotation of a container, evaluated.
        value: A container of that class.
    """
    origin, args = get_origin(hint), get_args(hint)
    if not isinstance(origin, type) or not isinstance(value, origin) or isinstance(value, TEXTS):
        return []
    if origin is tuple:
        each = list(args)
        if len(args) == 2 and args[1] is Ellipsis:
            each = [args[0]] * len(value)
        if len(each) != len(value):
            return []
        pairs = zip(value, each, strict=True)
        return [(f"item {n}", one, wanted) for n, (one, wanted) in enumerate(pairs)]
    if issubclass(origin, collections.abc.Mapping):
        keys = [("the key", key, args[0]) for key in value]
        return keys + [(f"the value of {key!r:.40}", value[key], args[1]) for key in value]
    if issubclass(origin, collections.abc.Iterable) and _has_items(value):
        return [(f"item {number}", one, args[0]) for number, one in enumerate(value)]
    return []


def names_axes(hint: Any) -> bool:
    """Whether an annotation names axes of arrays, as those of jaxtyping do."""
    return hasattr(hint, "dim_str") or any(map(names_axes, get_args(hint)))


def shared_axes() -> contextlib.AbstractContextManager[Any]:
    """Where one axis name means one length, in the arguments of one call and nowhere else.

    Without it, names that a caller's own annotations have given a length would be compared.
    """
    import jaxtyping

    return jaxtyping.jaxtyped("context")


def fits_alone(hint: Any, value: Any) -> bool:
    """Whether an array passes its own test, so that only axes of other arguments are against it."""
    if not names_axes(hint):
        return False
    with shared_axes():
        return test_of(hint)(value)


def _any_of(tests: list[Test]) -> Test:
    return anything if anything in tests else lambda value: any(test(value) for test in tests)


def _giving(wanted: Any) -> Test:
    """The test of functions; a class is one that gives its own instances."""
    several = get_args(wanted) if get_origin(wanted) in (Union, types.UnionType) else (wanted,)
    given = [get_origin(one) or one for one in several]
    classes = tuple(one for one in given if isinstance(one, type) and one is not Any)
    if len(classes) < len(given) or any(getattr(one, "_is_protocol", False) for one in classes):
        return callable
    return lambda value: (
        callable(value) and (not isinstance(value, type) or issubclass(value, classes))
    )


def _keeping(test: Test, rules: list[Rule]) -> Test:
    if not rules:
        return test
    return lambda value: test(value) and all(one.holds(value) for one in rules)


def _instance_of(wanted: type) -> Test:
    number = NUMBERS.get(wanted)
    if number is None:
        return lambda value: isinstance(value, wanted)
    return lambda value: (
        type(value) is wanted or (isinstance(value, number) and not isinstance(value, bool))
    )


def _tuple_of(hints: tuple[Any, ...]) -> Test:
    if len(hints) == 2 and hints[1] is Ellipsis:
        return _items_of(tuple, test_of(hints[0]))
    tests = [test_of(one) for one in hints]
    return lambda value: (
        isinstance(value, tuple)
        and len(value) == len(tests)
        and all(test(one) for test, one in zip(tests, value, strict=True))
    )


def _mapping_of(wanted: type, key: Test, held: Test) -> Test:
    return lambda value: (
        isinstance(value, wanted) and all(key(one) and held(value[one]) for one in value)
    )


def _items_of(wanted: type, test: Test) -> Test:
    def holds(value: Any) -> bool:
        if not isinstance(value, wanted) or isinstance(value, TEXTS):
            return False
        if getattr(value, "ndim", 1) == 0:
            return False
        return test is anything or not _has_items(value) or all(map(test, value))

    return holds


def _has_items(value: Any) -> bool:
    """Whether its items can be looked at without using it up."""
    return isinstance(value, collections.abc.Collection)
