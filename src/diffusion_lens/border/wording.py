"""What is said of an argument that is refused."""

from __future__ import annotations

import inspect
import re
import reprlib
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from diffusion_lens.border.hints import fits_alone, item_hints, test_of
from diffusion_lens.border.ranges import Rule

SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 60


def refusal(
    function: Callable[..., Any], args: tuple[Any, ...], argument: str, hint: Any, value: Any
) -> str:
    """The message: the function and its argument, what it takes, what it got, what it is for."""
    found = given(value)
    inner = first_wrong(hint, value)
    if inner is not None:
        place, item, _wanted = inner
        found = f"{found}, where {place} is {given(item)}"
    where = argument if argument.startswith("*") else f"{argument}=…"
    message = f"{called(function, args)}({where}) takes {told(hint)}, got {found}."
    return " ".join(filter(None, [message, advice(hint, value), meaning(function, argument)]))


def called(function: Callable[..., Any], args: tuple[Any, ...]) -> str:
    """A function as its users call it: a class for its `__init__`, an object for `__call__`.

    Args:
        function: The function.
        args: What it was called with: a method is called by the class of its object, which may
            have it from another.
    """
    owner, _, method = function.__qualname__.rpartition(".")
    of = [one if isinstance(one, type) else type(one) for one in args[:1]]
    kinds = [kind for kind in of if owner in {base.__qualname__ for base in kind.__mro__}]
    name = f"{kinds[0].__qualname__}.{method}" if kinds else function.__qualname__
    return re.sub(r"\.(__init__|__call__)$", "", re.sub(r"\.__getitem__$", "[…]", name))


def told(hint: Any) -> str:
    """An annotation in the words that a signature has for it."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is None or hint is types.NoneType:
        return "None"
    if origin in (Union, types.UnionType):
        return " | ".join(dict.fromkeys(map(told, args)))
    if origin is Annotated:
        rules = [str(one) for one in args[1:] if isinstance(one, Rule)]
        several = get_origin(args[0]) in (Union, types.UnionType)
        return (", " if several else " ").join([told(args[0]), *rules])
    if origin is Literal:
        return " | ".join(map(repr, args))
    if origin is not None and getattr(origin, "__name__", "") == "Callable":
        return "a function"
    if origin is not None:
        inside = ", ".join("…" if one is Ellipsis else told(one) for one in args)
        return f"{getattr(origin, '__name__', origin)}[{inside}]"
    return getattr(hint, "__name__", str(hint))


def given(value: Any) -> str:
    """A value in a few words: arrays by dtype and shape, anything else by its repr and type."""
    kind = type(value).__name__
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        whose = type(value).__module__.partition(".")[0]
        dtype = str(value.dtype).removeprefix("torch.")
        return f"a {whose} {dtype} {kind} of shape {tuple(value.shape)}"
    text = " ".join(SHORT.repr(value).split())
    return text if text.startswith(f"{kind}(") else f"{text} ({kind})"


def first_wrong(hint: Any, value: Any) -> tuple[str, Any, Any] | None:
    """(where, item, its annotation) of the item for which a container is refused, if it is one."""
    alternatives = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for alternative in alternatives:
        for where, item, wanted in item_hints(alternative, value):
            if not test_of(wanted)(item):
                return where, item, wanted
    return None


def advice(hint: Any, value: Any) -> str:
    """What to give in its place, where that is certain."""
    takes = told(hint)
    if fits_alone(hint, value):
        return "Its axes have other lengths than those of the same names in the arguments before."
    if isinstance(value, bool):
        return "True and False are no numbers here." if "int" in takes or "float" in takes else ""
    if "HookedDiffusion" in takes and hasattr(value, "scheduler"):
        return "Wrap the pipeline: `HookedDiffusion(pipe)`."
    if isinstance(value, str) and takes.startswith("Image"):
        return "Open a file first: `PIL.Image.open(…)`."
    if type(value).__module__ == "numpy" and "Tensor" in takes:
        return "Make a tensor of it: `torch.from_numpy(…)`."
    if hasattr(value, "tolist") and "Sequence[" in takes:
        return "Make a list of it: `….tolist()`."
    if isinstance(value, str) and ("Sequence[str" in takes or "| str]" in takes):
        return f"For a single one give [{SHORT.repr(value)}]."
    if isinstance(value, set | frozenset) and "Sequence[" in takes:
        return "A set has no order: give a list."
    return ""


def meaning(function: Callable[..., Any], argument: str) -> str:
    """The first sentence on an argument in the docstring of its function, or of its class."""
    owner = inspect.getmodule(function)
    for name in function.__qualname__.split(".")[:-1]:
        owner = getattr(owner, name, None)
    for text in filter(None, [inspect.getdoc(function), inspect.getdoc(owner)]):
        entry = rf"    {re.escape(argument)}: (.*(?:\n {{8}}.*)*)"
        before = r"^(?:Args|Attributes):\n(?:(?:    .*)?\n)*?"
        found = re.search(before + entry, text + "\n", re.MULTILINE)
        if found:
            sentence = re.split(r"(?<=[.;:])\s", " ".join(found[1].split()), maxsplit=1)[0]
            return f"{argument}: {sentence.rstrip('.;:')}."
    return ""
