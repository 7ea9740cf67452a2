"""Analyses by name, those of other packages (entry points) among them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from diffusion_lens.border import public
from diffusion_lens.errors import ExtensionError, closest
from diffusion_lens.extensions import EntryPoint, load, load_all, owner_of

GROUP = "diffusion_lens.analyses"
SHIPPED = {
    "activation_patching": "patching",
    "attend_and_excite": "attend_and_excite",
    "attention_maps": "attention_maps",
    "attribution_patching": "patching.attribution",
    "concept_attention": "concept_attention",
    "diagnose_word": "diagnose_word",
    "free_prompt_editing": "free_prompt_editing",
    "head_patterns": "head_patterns",
    "head_relevance": "head_relevance",
    "invert": "inversion",
    "masactrl": "masactrl",
    "ordered_weakening": "ordered_weakening",
    "plug_and_play": "plug_and_play",
    "prompt_to_prompt": "prompt_to_prompt",
    "sdedit": "sdedit",
    "stable_flow": "stable_flow",
    "vital_blocks": "stable_flow",
}
"""The analyses of this package with their modules."""

WANTED = "a function"


def analyses() -> dict[str, Callable[..., Any]]:
    """Every analysis by its name.

    An analysis takes a model and its inputs, the rest by keyword, and gives a result that says what
    made it, saves and plots itself. Packages add one by an entry point of the group
    `diffusion_lens.analyses`; see the page "Extending".

    Returns:
        Those of this package, then those of others. An entry point that cannot be imported, or
        gives no function, is left out with a warning that names it.

    Raises:
        ExtensionError: If two packages give the same name.
    """
    entries = list(entry_points(group=GROUP))
    for name in (*SHIPPED, *(entry.name for entry in entries)):
        _refuse_doubles(name, entries)
    found = {name: _shipped(name) for name in SHIPPED}
    loaded, _ = load_all(entries, fits=callable, wanted=WANTED)
    return found | {one.name: one.value for one in loaded}


@public
def analysis(name: str) -> Callable[..., Any]:
    """The analysis of a name.

    Only the package that declares it is imported, so that another, broken one is not in the way.

    Raises:
        ExtensionError: If there is none, which names the closest; if two packages give it; or if
            its package cannot be imported.
    """
    entries = list(entry_points(group=GROUP))
    _refuse_doubles(name, entries)
    if name in SHIPPED:
        return _shipped(name)
    for entry in entries:
        if entry.name == name:
            return load(entry, fits=callable, wanted=WANTED).value
    known = [*SHIPPED, *(entry.name for entry in entries)]
    near = closest(name, known)
    hint = f" Closest: {near[0]!r}." if near else ""
    raise ExtensionError(
        f"no analysis is called {name!r}; there are {', '.join(known)}.{hint} Packages add "
        f"analyses by entry points of the group {GROUP}."
    )


def _shipped(name: str) -> Callable[..., Any]:
    return getattr(import_module(f"diffusion_lens.analyses.{SHIPPED[name]}"), name)


def _refuse_doubles(name: str, entries: Iterable[EntryPoint]) -> None:
    owners = ["diffusion_lens"] if name in SHIPPED else []
    owners += sorted(owner_of(entry) for entry in entries if entry.name == name)
    if len(owners) > 1:
        raise ExtensionError(
            f"{len(owners)} analyses are called {name!r}: of {' and of '.join(owners)}. Rename an "
            f"entry point of the group {GROUP}, or uninstall a package."
        )
