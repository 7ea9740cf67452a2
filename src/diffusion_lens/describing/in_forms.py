"""A block's description as one of the forms that families share, where one of them says the same.

Each form is filled in with what the description names, made, and compared with it; so a form that
does not say the same is never written.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from diffusion_lens.architectures import forms
from diffusion_lens.architectures.forms import IMG_TXT, TXT_IMG, Own
from diffusion_lens.architectures.spec import Attention, BlockSpec, Gate, Stream
from diffusion_lens.describing.blocks import Reading
from diffusion_lens.describing.plain import as_compared
from diffusion_lens.describing.source import Calling, Code, of_dataclass, written


@dataclass(frozen=True)
class Known:
    """A value that is written in another way than it would be by itself."""

    value: Any
    code: str


Filled = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of a form, by position and by name."""


def in_a_form(reading: Reading) -> Calling | None:
    """The call of a form that describes a block as it was read; None where none does."""
    wanted = as_compared(reading.spec, reading)
    found = []
    for name, fill in FORMS.items():
        try:
            args, kwargs = fill(reading)
            made = getattr(forms, name)(*_values(args), **_values(kwargs))(reading.call.module)
            says_the_same = as_compared(made, reading) == wanted
        except (KeyError, IndexError, ValueError, AttributeError, TypeError):
            continue  # the block lacks what the form speaks of
        if says_the_same:
            found.append(_call(name, args, kwargs))
    return min(found, key=lambda one: len(written(one)), default=None)


def _values(given: Any) -> Any:
    if isinstance(given, Known):
        return given.value
    if isinstance(given, Mapping):
        return {name: _values(one) for name, one in given.items()}
    if isinstance(given, tuple):
        return tuple(_values(one) for one in given)
    return given


def _call(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Calling:
    parameters = inspect.signature(getattr(forms, name)).parameters
    changed = {
        key: value for key, value in kwargs.items() if _values(value) != parameters[key].default
    }
    shown = {key: _shown(key, value) for key, value in changed.items()}
    return Calling(f"forms.{name}", tuple(_shown("", one) for one in args), shown)


def _shown(key: str, value: Any) -> Any:
    """A value under the name that a person would give it."""
    if isinstance(value, Known):
        return Code(value.code)
    if value == TXT_IMG:
        return Code("TXT_IMG")
    if value == IMG_TXT:
        return Code("IMG_TXT")
    if isinstance(value, Own):
        return _own(value)
    if key == "gates" and isinstance(value, tuple):
        return gates(value)
    if isinstance(value, Mapping):
        return {name: _shown(key, one) for name, one in value.items()}
    return value


def _own(own: Own) -> Calling:
    """What a stream has to itself, by what differs from the usual."""
    shown = []
    for name, base in (("forms.IMAGE", forms.IMAGE), ("forms.TEXT", forms.TEXT)):
        call = of_dataclass(own, name=name, base=base)
        shown.append(call)
    shown.append(of_dataclass(own, name="forms.Own"))
    shown = [
        replace(one, kwargs={key: _shown(key, value) for key, value in one.kwargs.items()})
        for one in shown
    ]
    return min(shown, key=lambda one: len(written(one)))


def gates(both: tuple[Gate | None, Gate | None]) -> Any:
    """Two gates as a call that makes them, where there is one."""
    first, second = both
    if first is None or second is None:
        return both
    if first.norm is not None and second.norm is not None:
        bare = (replace(first, norm=None), replace(second, norm=None))
        inner = (None, None) if bare == (Gate(), Gate()) else bare
        return Calling("forms.sandwiched", (gates(inner), (first.norm, second.norm)))
    if (first, second) == forms.adaptive(first.module):
        return Calling("forms.adaptive", (first.module,))
    if first.pieces > 1 and replace(first, index=0) == replace(second, index=0):
        source = of_dataclass(replace(first, index=None, pieces=1)).kwargs
        return Calling("forms.chunked", (first.index, second.index, first.pieces), source)
    return both


# -- what each form is filled in with ----------------------------------------------------------


def _only(spec: BlockSpec) -> Attention:
    (attention,) = spec.attentions
    return attention


def _sizes(attention: Attention) -> Any:
    """How the module tells its heads; by number where nothing in it is that number."""
    if attention.sizes is None:
        return None
    return Known(lambda _module: attention.sizes, f"lambda _module: {attention.sizes}")


def _products(attention: Attention) -> Any:
    if attention.products == ("",):
        return forms.one_product
    code = written(attention.products)
    return Known(lambda _block: attention.products, f"lambda _block: {code}")


def _after(path: str | None, start: str) -> str:
    """A path from a module inside the block."""
    if path is None or not path.startswith(f"{start}."):
        raise ValueError(path)
    return path.removeprefix(f"{start}.")


def _both(spec: BlockSpec, name: str, attention: Attention) -> tuple[Gate | None, Gate | None]:
    return attention.gates.get(name), spec.mlps[name].gate


def _by_output(streams: Mapping[str, Stream]) -> tuple[str, ...]:
    return tuple(sorted(streams, key=lambda name: streams[name].output or 0))


def _joint(reading: Reading) -> Filled:
    spec = reading.spec
    attention = _only(spec)
    own = {
        name: Own(
            projection=attention.projections[name].module,
            norm=stream.mids[0].module,
            mlp=spec.mlps[name].module or "",
            down=spec.mlps[name].down,
            gates=_both(spec, name, attention),
            before_rope=attention.before_rope.get(name),  # type: ignore[arg-type]
            argument="" if stream.argument == forms.ARGUMENTS[name] else stream.argument,
            clamped=stream.clamped,
            place=stream.mids[0].argument,
        )
        for name, stream in spec.streams.items()
    }
    gives = sorted(own, key=lambda name: attention.outputs.get(name) or 0)
    return (attention.queries, own), {
        "returns": _by_output(spec.streams),
        "attention": attention.module,
        "gives": tuple(gives),
        "products": _products(attention),
        "sizes": _sizes(attention),
        "heads_first": attention.heads_first,
        "heads_joined": attention.heads_joined,
    }


def _parallel(reading: Reading) -> Filled:
    spec = reading.spec
    attention = _only(spec)
    stream = next(iter(spec.streams.values()))
    order = attention.queries
    gate = attention.gates[order[0]]
    return (order, attention.projections[order[0]].module, gate), {
        "returns": _by_output(spec.streams),
        "within": stream.argument if stream.within else None,
        "before_rope": attention.before_rope.get(order[0]),
        "clamped": all(one.clamped for one in spec.streams.values()),
        "products": _products(attention),
    }


def _sequential(reading: Reading) -> Filled:
    spec = reading.spec
    attention = _only(spec)
    order = attention.queries
    stream, mlp = spec.streams[order[0]], spec.mlps[order[0]]
    norms = attention.before_rope.get(order[0])
    return (order,), {
        "within": stream.argument,
        "attention": attention.module,
        "norm": stream.mids[0].module,
        "mlp": (mlp.module, mlp.down),
        "gates": _both(spec, order[0], attention),
        "sizes": _sizes(attention),
        "gated": attention.gated,
        "before_rope": norms and tuple(_after(one, attention.module) for one in norms),
        "beside": stream.mids[0].beside,
        "positions_first": stream.positions_first,
        "projection": _after(attention.projections[order[0]].module, attention.module),
        "heads_joined": attention.heads_joined,
    }


def _shared(reading: Reading) -> Filled:
    spec = reading.spec
    attention = _only(spec)
    mids = {name: stream.mids[0] for name, stream in spec.streams.items()}
    calls = {name: mlp.call for name, mlp in spec.mlps.items() if mlp.call is not None}
    return (mids, {name: _both(spec, name, attention) for name in mids}), {
        "calls": tuple(sorted(calls, key=lambda name: calls[name] or 0)),
        "before_rope": attention.before_rope.get("img"),
        "heads_first": attention.heads_first,
        "clamped": spec.streams["img"].clamped,
    }


def _crossed(reading: Reading) -> Filled:
    spec = reading.spec
    itself, cross = spec.attentions
    stream, mlp = spec.streams["img"], spec.mlps["img"]
    norms = itself.before_rope.get("img")
    first, second = stream.mids
    return ((first.module, second.module),), {
        "mlp": (mlp.module, mlp.down),
        "gates": _both(spec, "img", itself),
        "cross_gate": cross.gates.get("img"),
        "before_rope": norms and tuple(_after(one, itself.module) for one in norms),
        "heads_joined": itself.heads_joined,
        "heads_first": itself.heads_first,
        "copied": first.copied,
        "products": _products(cross),
        "within": stream.argument,
        "attentions": (itself.module, cross.module),
        "projection": _after(itself.projections["img"].module, itself.module),
        "sizes": _sizes(itself),
        "entrance": stream.entrance,
        "linear": not itself.products,
        "maps": mlp.maps,
    }


def _mixed(reading: Reading) -> Filled:
    spec = reading.spec
    attention = _only(spec)
    stream, mlp = spec.streams["img"], spec.mlps["img"]
    return (attention.keys,), {
        "attention": attention.module,
        "norm": stream.mids[0].module,
        "mlp": (mlp.module, mlp.down),
        "gates": _both(spec, "img", attention),
        "before_rope": {
            name: (query and _after(query, attention.module), _after(key, attention.module))
            for name, (query, key) in attention.before_rope.items()
        },
        "heads_first": attention.heads_first,
        "clamped": stream.clamped,
    }


FORMS: dict[str, Callable[[Reading], Filled]] = {
    "joint": _joint,
    "parallel": _parallel,
    "sequential": _sequential,
    "shared": _shared,
    "crossed": _crossed,
    "mixed": _mixed,
}
"""For each form what it is filled in with."""
