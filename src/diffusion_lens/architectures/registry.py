"""The known families, those of other packages (entry points) among them."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points
from typing import Any

from diffusion_lens.architectures.same import is_same
from diffusion_lens.architectures.shipped import SHIPPED
from diffusion_lens.architectures.spec import DenoiserSpec
from diffusion_lens.border import public
from diffusion_lens.errors import ExtensionError, UnsupportedModelError, closest
from diffusion_lens.extensions import Declared, EntryPoint, load_all, owner_of

GROUP = "diffusion_lens.architectures"

_REGISTERED: dict[str, DenoiserSpec] = {spec.denoiser: spec for spec in SHIPPED}
_REPLACED: set[str] = set()
"""Denoisers whose registered description was said to stand in the place of any other."""

Found = tuple[list[Declared], list[str]]
_FOUND: dict[Any, Found] = {}
"""The loaded entry points by what was looked through: looking costs as much as wrapping a model."""
_IMPORTING: list[str] = []
"""Not empty while entry points are imported; what they import may ask for architectures itself."""


@public
def register_architecture(spec: DenoiserSpec, *, replace: bool = False) -> DenoiserSpec:
    """Make a family known.

    Packages declare an entry point of the group `diffusion_lens.architectures` instead, whose value
    is a `DenoiserSpec`; this call is for notebooks. The same description may be given again, as
    where a cell runs twice.

    Args:
        spec: The description.
        replace: Whether it stands in the place of any other for the same denoiser class.

    Returns:
        The description.

    Raises:
        ExtensionError: If the class is described otherwise already, and not to be replaced.
    """
    name = spec.denoiser
    if replace:
        _REPLACED.add(name)
    elif name in _REGISTERED and not is_same(_REGISTERED[name], spec):
        _refuse_double(name, [_registered_by(name), "this call of `register_architecture`"])
    else:
        others = [_said(one) for one in _declared()[0] if _differs(one, spec)]
        if others:
            _refuse_double(name, [*others, "this call of `register_architecture`"])
    _REGISTERED[name] = spec
    return spec


def architectures() -> dict[str, DenoiserSpec]:
    """Every known family by the class name of its denoiser.

    An entry point that cannot be imported, or gives no description, is left out with a warning.

    Returns:
        Those of this package and of `register_architecture`, then those of other packages.

    Raises:
        ExtensionError: If a class is described twice.
    """
    names = [one.value.denoiser for one in _declared(anew=True)[0]]
    return {name: architecture_of(name) for name in dict.fromkeys([*_REGISTERED, *names])}


def architecture_of(class_name: str) -> DenoiserSpec:
    """The family of a denoiser class.

    Raises:
        UnsupportedModelError: If it is unknown; the message lists the known ones, and what other
            packages declare but cannot be imported.
        ExtensionError: If it is described twice.
    """
    known = class_name in _REGISTERED
    if known and class_name in _REPLACED:
        return _REGISTERED[class_name]
    declared, broken = _declared(anew=not known)
    offers = [one for one in declared if one.value.denoiser == class_name]
    first = _REGISTERED[class_name] if known else offers[0].value if offers else None
    if first is None:
        raise UnsupportedModelError(_unknown(class_name, declared, broken))
    if len(offers) > 1 or any(_differs(one, first) for one in offers):
        owners = [_registered_by(class_name)] if known else []
        _refuse_double(class_name, owners + [_said(one) for one in offers])
    return first


def is_known(class_name: str) -> bool:
    """Whether a denoiser class is described."""
    declared, _ = _declared(anew=class_name not in _REGISTERED)
    return class_name in _REGISTERED or any(one.value.denoiser == class_name for one in declared)


def _declared(*, anew: bool = False) -> Found:
    """What other packages declare; nothing while they are imported for it."""
    if _IMPORTING:
        return [], []
    looked_through = (entry_points, *sys.path)
    if anew or looked_through not in _FOUND:
        entries: list[EntryPoint] = sorted(entry_points(group=GROUP), key=_owner_and_name)
        _IMPORTING.append(GROUP)
        try:
            _FOUND[looked_through] = load_all(
                entries, fits=lambda value: isinstance(value, DenoiserSpec), wanted="a DenoiserSpec"
            )
        finally:
            _IMPORTING.pop()
    return _FOUND[looked_through]


def _owner_and_name(entry: EntryPoint) -> tuple[str, str]:
    return owner_of(entry), entry.name


def _differs(one: Declared, spec: DenoiserSpec) -> bool:
    """Whether an entry point describes the same denoiser in another way."""
    return one.value.denoiser == spec.denoiser and not is_same(one.value, spec)


def _said(one: Declared) -> str:
    return f"the entry point {one.name!r} of {one.owner}"


def _registered_by(name: str) -> str:
    shipped = any(spec is _REGISTERED[name] for spec in SHIPPED)
    return "diffusion_lens" if shipped else "`register_architecture`"


def _refuse_double(name: str, owners: list[str]) -> None:
    raise ExtensionError(
        f"{name} is described {len(owners)} times: by {' and by '.join(owners)}. "
        "Uninstall a package, or say which is meant with `register_architecture(spec, "
        "replace=True)`."
    )


def _unknown(class_name: str, declared: list[Declared], broken: list[str]) -> str:
    known = dict.fromkeys([*_REGISTERED, *(one.value.denoiser for one in declared)])
    near = closest(class_name, known)
    hint = f" Closest: {near[0]}." if near else ""
    left_out = "".join(f" Left out: {message}." for message in broken)
    return (
        f"no architecture is registered for {class_name}; known denoisers are "
        f"{', '.join(known)}.{hint} Register one with `register_architecture(spec)`.{left_out}"
    )
