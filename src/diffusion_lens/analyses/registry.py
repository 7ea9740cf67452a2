"""Analyses by name, those of other packages (entry points) among them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, NamedTuple

from diffusion_lens.border import public
from diffusion_lens.errors import ExtensionError, closest
from diffusion_lens.extensions import EntryPoint, load, load_all, owner_of

GROUP = "diffusion_lens.analyses"


class Row(NamedTuple):
    """What is registered of one shipped analysis.

    Attributes:
        name: Its function.
        module: Where, below `diffusion_lens.analyses`.
        result: Class of what it gives.
        cites: Keys of the entries of `cli/citations.bib` for the methods behind it.
        command: The command that runs it, after `diffusion-lens`; empty where there is none.
    """

    name: str
    module: str
    result: str
    cites: tuple[str, ...]
    command: str = ""


PATCHING = ("vig2020causal", "meng2022rome", "basu2024localizing")
ROWS = (
    Row(
        "ablation_sweep",
        "patching.ablation_sweep",
        "AblationResult",
        ("michel2019sixteen", "wang2023interpretability"),
        "ablate",
    ),
    Row("activation_patching", "patching", "PatchingResult", PATCHING, "patch"),
    Row("attend_and_excite", "attend_and_excite", "ExcitedImages", ("chefer2023attend",), "excite"),
    Row("attention_maps", "attention_maps", "AttentionMaps", ("tang2023daam",), "attention-maps"),
    Row("attribution_patching", "patching.attribution_patching", "PatchingResult", PATCHING),
    Row(
        "concept_attention",
        "concept_attention",
        "ConceptMaps",
        ("helbling2025conceptattention",),
        "concept-attention",
    ),
    Row("diagnose_word", "diagnose_word", "WordDiagnosis", ("selective2026aggregation",)),
    Row(
        "free_prompt_editing",
        "free_prompt_editing",
        "EditedImages",
        ("liu2024understanding",),
        "edit --method fpe",
    ),
    Row("head_patterns", "head_patterns", "HeadPatterns", ("raghu2021vision", "tang2023daam")),
    Row(
        "head_relevance", "head_relevance", "HeadRelevance", ("park2025headrelevance",), "hrv build"
    ),
    Row("invert", "inversion", "Inversion", ("song2021ddim",), "edit --image"),
    Row("masactrl", "masactrl", "EditedImages", ("cao2023masactrl",), "edit --method masactrl"),
    Row(
        "ordered_weakening",
        "ordered_weakening",
        "WeakeningCurves",
        ("park2025headrelevance",),
        "hrv weaken",
    ),
    Row(
        "plug_and_play",
        "plug_and_play",
        "EditedImages",
        ("tumanyan2023plug",),
        "edit --method pnp",
    ),
    Row("prompt_to_prompt", "prompt_to_prompt", "EditedImages", ("hertz2023prompt",), "edit"),
    Row("sdedit", "sdedit", "EditedImages", ("meng2022sdedit",), "edit --method sdedit"),
    Row(
        "stable_flow",
        "stable_flow",
        "EditedImages",
        ("avrahami2025stable",),
        "edit --method stable-flow",
    ),
    Row("vital_blocks", "stable_flow", "VitalBlocks", ("avrahami2025stable",)),
)
SHIPPED = {row.name: row for row in ROWS}
"""The analyses of this package, by name."""

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
    return getattr(import_module(f"diffusion_lens.analyses.{SHIPPED[name].module}"), name)


def _refuse_doubles(name: str, entries: Iterable[EntryPoint]) -> None:
    owners = ["diffusion_lens"] if name in SHIPPED else []
    owners += sorted(owner_of(entry) for entry in entries if entry.name == name)
    if len(owners) > 1:
        raise ExtensionError(
            f"{len(owners)} analyses are called {name!r}: of {' and of '.join(owners)}. Rename an "
            f"entry point of the group {GROUP}, or uninstall a package."
        )
