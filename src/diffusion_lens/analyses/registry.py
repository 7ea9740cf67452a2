"""Analyses by name, those of other packages (entry points) among them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from diffusion_lens.border import public
from diffusion_lens.errors import ExtensionError, closest

GROUP = "diffusion_lens.analyses"
SHIPPED = {
    "activation_patching": "patching",
    "attention_maps": "attention_maps",
    "attribution_patching": "attribution",
    "concept_attention": "concept_attention",
    "diagnose_word": "diagnose_word",
    "head_patterns": "head_patterns",
    "head_relevance": "head_relevance",
    "ordered_weakening": "ordered_weakening",
}
"""The analyses of this package with their modules."""


def analyses() -> dict[str, Callable[..., Any]]:
    """Every analysis by its name.

    An analysis takes a model and its inputs, the rest by keyword, and gives a result that says what
    made it, saves and plots itself. Packages add one by an entry point of the group
    `diffusion_lens.analyses`; see the page "Extending".

    Returns:
        Those of this package, then those of others.

    Raises:
        ExtensionError: If an entry point gives no function, or takes a name that is taken.
    """
    found = {
        name: getattr(import_module(f"diffusion_lens.analyses.{module}"), name)
        for name, module in SHIPPED.items()
    }
    owners = dict.fromkeys(found, "diffusion_lens")
    for entry in entry_points(group=GROUP):
        owner = entry.dist.name if entry.dist is not None else entry.value
        if entry.name in found:
            raise ExtensionError(
                f"the analysis {entry.name!r} of {owner} has the name of one of "
                f"{owners[entry.name]}; rename its entry point of the group {GROUP}"
            )
        loaded = entry.load()
        if not callable(loaded):
            raise ExtensionError(
                f"the entry point {entry.name!r} of {owner} in {GROUP} is a "
                f"{type(loaded).__name__}, not a function; see docs/extending.md"
            )
        found[entry.name], owners[entry.name] = loaded, owner
    return found


@public
def analysis(name: str) -> Callable[..., Any]:
    """The analysis of a name.

    Raises:
        ExtensionError: If there is none; the message names the closest.
    """
    known = analyses()
    if name not in known:
        near = closest(name, known)
        hint = f" Closest: {near[0]!r}." if near else ""
        raise ExtensionError(
            f"no analysis is called {name!r}; there are {', '.join(known)}.{hint} Packages add "
            f"analyses by entry points of the group {GROUP}."
        )
    return known[name]
