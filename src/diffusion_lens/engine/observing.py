"""Being told of the calls of one object's method, without a trace on the object itself.

The method is replaced on the class, by one that looks up whether anybody observes this very object.
On the object it would travel with `copy.deepcopy` (diffusers copies schedulers inside pipelines),
and the copy would go on calling the original's method.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

Wrapper = Callable[..., Any]
"""`wrapper(original, *args, **kwargs)`, in front of a method that is already bound."""

_Held = Callable[[], Wrapper | None]

_LOCK = threading.RLock()
_TABLES: dict[tuple[type, str], _Table] = {}


class _Table:
    """Who observes one method of which objects of a class.

    Objects and observers are held weakly: a model that goes out of scope with hooks on is freed.
    """

    def __init__(self, kind: type, name: str) -> None:
        """Put the observable method on the class."""
        self.kind, self.name = kind, name
        self.own = kind.__dict__.get(name)
        self.observers: dict[int, tuple[weakref.ref[Any], tuple[_Held, ...]]] = {}
        observers, original = self.observers, getattr(kind, name)
        signature = _without_self(original)

        @functools.wraps(original)
        def method(owner: Any, *args: Any, **kwargs: Any) -> Any:
            bound = functools.partial(original, owner)
            held, wrappers = observers.get(id(owner), (None, ()))
            if held is not None and held() is owner:
                for wrapper in filter(None, (one() for one in wrappers)):
                    bound = functools.partial(wrapper, bound)
                    bound.__signature__ = signature  # type: ignore[attr-defined]
            return bound(*args, **kwargs)

        method.is_observed = True  # type: ignore[attr-defined]
        self.method = method
        setattr(kind, name, method)

    @property
    def is_reached(self) -> bool:
        """Whether calls still come by: somebody may have put another method on the class since."""
        method = getattr(self.kind, self.name, None)
        while method is not None and method is not self.method:
            method = getattr(method, "__wrapped__", None)
        return method is self.method

    def add(self, owner: Any, wrapper: Wrapper, *, innermost: bool) -> None:
        """Let a wrapper be called for this object, around those that are there or inside them."""
        number = id(owner)
        held, known = self.observers.get(number, (None, ()))
        if held is None or held() is not owner:
            held, known = weakref.ref(owner, lambda _: self._drop(number)), ()
        one = weakref.WeakMethod(wrapper) if inspect.ismethod(wrapper) else _strong(wrapper)
        self.observers[number] = (held, (one, *known) if innermost else (*known, one))

    def remove(self, owner: Any, wrapper: Wrapper) -> None:
        """Undo `add`; the last one gives the class its own method back."""
        held, known = self.observers.get(id(owner), (None, ()))
        if held is None or held() is not owner:
            return
        kept = tuple(one for one in known if one() not in (None, wrapper))
        if kept:
            self.observers[id(owner)] = (held, kept)
        else:
            self._drop(id(owner))

    def _drop(self, number: int) -> None:
        with _LOCK:
            self.observers.pop(number, None)
            if self.observers:
                return
            if _TABLES.get((self.kind, self.name)) is self:
                del _TABLES[self.kind, self.name]
            # Where somebody else wrapped ours meanwhile, it stays and lets every call through.
            if self.kind.__dict__.get(self.name) is not self.method:
                return
            if self.own is None:
                delattr(self.kind, self.name)
            else:
                setattr(self.kind, self.name, self.own)


def _strong(wrapper: Wrapper) -> _Held:
    return lambda: wrapper


def _without_self(method: Callable[..., Any]) -> inspect.Signature:
    found = inspect.signature(method)
    return found.replace(parameters=list(found.parameters.values())[1:])


@contextlib.contextmanager
def observed(owner: Any, name: str, wrapper: Wrapper, *, innermost: bool = False) -> Iterator[None]:
    """Call `wrapper(original, ...)` in place of a method of one object while the context is open.

    Args:
        owner: The object; others of its class, and copies of it, are let through.
        name: The method. Nothing happens where there is none.
        wrapper: Gets the bound original and its arguments, and returns what the call returns.
        innermost: Whether it is nearest to the method, in place of farthest from it.
    """
    if getattr(owner, name, None) is None:
        yield
        return
    if name in getattr(owner, "__dict__", {}):
        with _replaced_on_object(owner, name, wrapper):
            yield
        return
    with _LOCK:
        table = _TABLES.get((type(owner), name))
        if table is None or not table.is_reached:
            table = _TABLES[type(owner), name] = _Table(type(owner), name)
        table.add(owner, wrapper, innermost=innermost)
    try:
        yield
    finally:
        with _LOCK:
            table.remove(owner, wrapper)


@contextlib.contextmanager
def _replaced_on_object(owner: Any, name: str, wrapper: Wrapper) -> Iterator[None]:
    """The same where somebody put a function on the object, which hides the class's."""
    before = owner.__dict__[name]
    method = functools.wraps(before)(functools.partial(wrapper, before))
    object.__setattr__(owner, name, method)
    try:
        yield
    finally:
        if owner.__dict__.get(name) is method:
            object.__setattr__(owner, name, before)


def unobserved(kind: type, name: str) -> Callable[..., Any]:
    """A class's method as it is without observers."""
    method = getattr(kind, name)
    while getattr(method, "is_observed", False):
        method = method.__wrapped__
    return method
