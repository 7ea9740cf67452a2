"""The decorator of public functions."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_args, overload

from diffusion_lens.border.hints import Test, anything, names_axes, shared_axes, test_of
from diffusion_lens.border.settings import ByName
from diffusion_lens.border.wording import called, refusal
from diffusion_lens.errors import ArgumentError, UnknownSettingError, closest

OTHERS = "**"
"""Under which name the annotation of `**settings` is kept."""

Function = TypeVar("Function", bound=Callable[..., Any])


@overload
def public(function: Function) -> Function: ...
@overload
def public(**closer: Any) -> Callable[[Function], Function]: ...
def public(function: Any = None, **closer: Any) -> Any:
    """Check the arguments of a function against its annotations before it runs.

    Tests are made of the annotations at the first call, so that decorating costs nothing at import.
    Over a class it stands for the class's `__init__`. It is the outermost decorator, but for
    `classmethod` and its like.

    Args:
        function: A function, or a class.
        closer: Annotations in place of the signature's own, by the names of parameters.

    Returns:
        A function that raises `ArgumentError` on an argument of a type or range that the
        annotations leave out; the class itself for a class.
    """
    if function is None:
        return lambda one: _checked(one, closer)
    return _checked(function, closer)


def _checked(function: Any, closer: Mapping[str, Any]) -> Any:
    if isinstance(function, type):
        owner: Any = function
        owner.__init__ = _checked(owner.__init__, closer)
        return owner
    border: Border | None = None

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        nonlocal border
        if border is None:
            border = Border(function, closer)
        wrong = border.first_wrong(args, kwargs)
        if wrong is not None:
            raise ArgumentError(refusal(function, args, *wrong)) from None
        try:
            return function(*args, **kwargs)
        except UnknownSettingError as error:
            border.name_closest(error, function, kwargs)
            raise
        except TypeError as error:
            _call_by_its_owner(error, function, args)
            raise

    checked.__border__ = True  # type: ignore[attr-defined]
    if {"self", "cls"} & set(getattr(function, "__annotations__", ())):
        checked.__signature__ = _without_own_type(function)  # type: ignore[attr-defined]
    return checked


def _without_own_type(function: Callable[..., Any]) -> inspect.Signature:
    """A method's signature without the variable for the type of its object, which users never see.

    `self: Model … -> Iterator[Model]` becomes `self … -> Iterator[Self]`.
    """
    signature = inspect.signature(function)
    own, *others = signature.parameters.values()
    kind = re.sub(r"^type\[(.*)\]$", r"\1", str(own.annotation))
    returned = re.sub(rf"\b{re.escape(kind)}\b", "Self", str(signature.return_annotation))
    first = own.replace(annotation=inspect.Parameter.empty)
    return signature.replace(parameters=[first, *others], return_annotation=returned)


def _call_by_its_owner(error: TypeError, function: Any, args: tuple[Any, ...]) -> None:
    """In what Python says of a call that fits no signature, call a method as its users do.

    Python calls it by the class that defines it, of which users may never have heard.
    """
    defined = f"{inspect.unwrap(function).__qualname__}()"
    said = str(error)
    if said.startswith(defined):
        error.args = (f"{called(function, args)}(){said.removeprefix(defined)}",)


class Border:
    """The tests of one function's arguments.

    Attributes:
        hints: The evaluated annotation of each parameter, and of the named settings that
            `**settings` takes.
    """

    def __init__(self, function: Callable[..., Any], closer: Mapping[str, Any]) -> None:
        """Make the tests."""
        self.hints: dict[str, Any] = {}
        self._positional: list[tuple[str, Test]] = []
        self._more: tuple[str, Test] | None = None
        self._by_name: dict[str, Test] = {}
        self._others: Test = anything
        self._own: list[str] = []
        for name, hint, kind in annotated(function):
            self._add(name, closer.get(name, hint), kind)
        self._has_axes = any(map(names_axes, self.hints.values()))

    def _add(self, name: str, hint: Any, kind: Any) -> None:
        if kind is inspect.Parameter.VAR_KEYWORD:
            for rules in (one for one in get_args(hint) if isinstance(one, ByName)):
                self.hints |= dict(rules.hints)
                self._by_name |= {named: test_of(one) for named, one in rules.hints}
            self.hints[OTHERS] = hint
            self._others = test_of(hint)
            return
        test = test_of(hint)
        self.hints[name] = hint
        self._own.append(name)
        if kind is inspect.Parameter.VAR_POSITIONAL:
            self._more = (name, test)
            return
        if kind is not inspect.Parameter.KEYWORD_ONLY:
            self._positional.append((name, test))
        self._by_name[name] = test

    def first_wrong(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[str, Any, Any] | None:
        """(argument, annotation, value) of the first argument that fails its test, or None."""
        if not self._has_axes:
            return self._first_wrong(args, kwargs)
        with shared_axes():
            return self._first_wrong(args, kwargs)

    def name_closest(
        self, error: UnknownSettingError, function: Callable[..., Any], kwargs: Mapping[str, Any]
    ) -> None:
        """Say which parameter of the function itself a setting that nobody knows may stand for."""
        near = closest(error.setting, self._own, count=1, cutoff=0.7)
        if near and error.setting in kwargs:
            error.args = (f"{function.__name__} has {near[0]}= itself. {error}",)
            error.setting = ""  # which no caller needs to explain any more

    def _first_wrong(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[str, Any, Any] | None:
        for (name, test), value in zip(self._positional, args, strict=False):
            if not test(value):
                return name, self.hints[name], value
        if self._more is not None:
            name, test = self._more
            for value in args[len(self._positional) :]:
                if not test(value):
                    return f"*{name}", self.hints[name], value
        for name, value in kwargs.items():
            if not self._by_name.get(name, self._others)(value):
                return name, self.hints.get(name, self.hints.get(OTHERS)), value
        return None


def annotated(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    """(name, evaluated annotation, kind) of every parameter; `Any` where there is no annotation."""
    bare = inspect.unwrap(function)
    space = bare.__globals__  # type: ignore[attr-defined]
    found = []
    for parameter in inspect.signature(bare).parameters.values():
        hint = parameter.annotation
        if hint is inspect.Parameter.empty:
            hint = Any
        elif isinstance(hint, str):
            hint = _evaluated(hint, space)
        found.append((parameter.name, hint, parameter.kind))
    return found


def _evaluated(hint: str, space: dict[str, Any]) -> Any:
    """An annotation's value.

    Of what its module imports for type checkers alone, packages are imported here, and the rest
    is `Any`: such functions test that argument themselves.
    """
    beside: dict[str, Any] = {}
    while True:
        try:
            return eval(hint, space, beside)
        except NameError as missing:
            name = str(missing.name)
            try:
                beside[name] = importlib.import_module(name)
            except ImportError:
                beside[name] = Any
