"""Every public function checks its arguments, and nothing that runs inside hooks does."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffusion_lens import analyses, metrics
from diffusion_lens.border.checking import Border

MODULES = (
    "diffusion_lens",
    "diffusion_lens.activations",
    "diffusion_lens.interventions",
    "diffusion_lens.reducers",
    "diffusion_lens.testing",
    "diffusion_lens.toys",
    "diffusion_lens.viz",
    "diffusion_lens.analyses",
    *(f"diffusion_lens.metrics.{one.name}" for one in pkgutil.iter_modules(metrics.__path__)),
    *(f"diffusion_lens.analyses.{one.name}" for one in pkgutil.iter_modules(analyses.__path__)),
)

INSIDE_HOOKS = {
    "HookContext.__init__",
    "HookContext.axis",
    "HookPoint.__init__",
    "HookPoint.elements",
    "HookPoint.shape",
    "Outcome.__init__",
    "Outcome.beside",
    "PatternStatistics.table",
    "PatternSums.add",
    "PatternSums.result",
    "PatternSums.weights",
    "Site.fires_in",
    "Site.has_step",
    "Excite.__call__",  # rules, losses and gradients, at every evaluation
    "HeadRelevanceVotes.begin",
    "NeglectLoss.__call__",
    "NeglectLoss.maxima",
    "PatternGradient.__call__",
    "Reference.get",
    "Reference.put",
    "cast_votes",
    "concept_shares",
    "pattern_distance",
    "pattern_entropy",
}
"""Called or made at every firing or evaluation, or of a collector that is."""

SAY_MORE = {
    "ActivationCache.__getitem__",  # CacheKeyError
    "ActivationCache.steps_of",
    "Run.of",  # makes a Run, which is checked
    "Site.__init__",  # SiteError
    "Site.of",
    "Site.with_",
}
"""Their own errors say more."""

MADE_HERE = {
    "ActivationCache",
    "ActivationStore",
    "Alignment",
    "AttentionMaps",
    "ConceptMaps",
    "ConceptWords",
    "ContractReport",
    "EditedImages",
    "ExcitedImages",
    "Failure",
    "HeadPatterns",
    "HeadRelevance",
    "Inversion",
    "NeglectLoss",
    "OnlineActivations",
    "Output",
    "AblationResult",
    "PatchingResult",
    "Prediction",
    "Rows",
    "TokenPatterns",
    "VitalBlocks",
    "WeakeningCurves",
    "WordDiagnosis",
}
"""Results and plans: the library makes them and its users read them."""

FOR_THE_ENGINE = {
    "Alignment.join",
    "ConceptWords.draw",
    "HookPoint.places",
    "Ranking.top",  # a protocol
    "WordNoise.applied",
    "blocks_of",
    "decoder_blocks",
    "edited_images",
    "edited_run",
    "inference_steps",
    "late_blocks",
    "map_gallery",
    "pattern_sites",
    "pixel_distance",
    "read_about",
    "read_made_by",
    "refinement",
    "refuse_other_heads",
    "replacement",
    "rows_of",
    "run_with_reference",
}
"""Without an underscore, but in no page of the reference."""

UNCHECKED = INSIDE_HOOKS | SAY_MORE | FOR_THE_ENGINE | {f"{name}.__init__" for name in MADE_HERE}


def is_public(name: str) -> bool:
    return not name.startswith("_") or name in ("__init__", "__call__", "__getitem__")


def public_values() -> Iterator[tuple[str, Any]]:
    """What the modules list in `__all__`, or else define, in themselves or below."""
    for module in map(importlib.import_module, MODULES):
        home = module.__name__
        for name in getattr(module, "__all__", None) or filter(is_public, list(vars(module))):
            value = getattr(module, name)
            own = str(getattr(value, "__module__", ""))
            if hasattr(module, "__all__") or own == home or own.startswith(f"{home}."):
                yield name, value


def parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters) - {"self", "cls"}


def parts_of(kind: type) -> dict[str, Any]:
    """What a class defines; `HookedDiffusion` is made of several."""
    kinds = [one for one in kind.__mro__[1:] if "hooked_diffusion" in one.__module__]
    return {name: held for one in (*kinds[::-1], kind) for name, held in vars(one).items()}


def public_functions() -> dict[str, Any]:
    """Every public function, method and constructor that takes arguments and is no hook."""
    found: dict[str, Any] = {}
    for name, value in public_values():
        if inspect.isfunction(value):
            found[name] = value
        if not inspect.isclass(value) or issubclass(value, Exception | tuple):
            continue
        for part, held in parts_of(value).items():
            function = getattr(held, "__func__", held)
            generated = part == "__init__" and getattr(value, "_is_protocol", False)
            if is_public(part) and inspect.isfunction(function) and not generated:
                found[f"{name}.{part}"] = function
    return {
        name: function
        for name, function in sorted(found.items())
        if parameters(function) and not parameters(function) & {"hook", "_hook"}
    }


FUNCTIONS = public_functions()


def test_every_public_function_checks_its_arguments() -> None:
    assert len(FUNCTIONS) > 150
    missing = [name for name, one in FUNCTIONS.items() if not getattr(one, "__border__", False)]
    assert sorted(set(missing) - UNCHECKED) == [], "decorate them with `border.public`"
    assert sorted(UNCHECKED - set(missing)) == [], "these are decorated now, or gone"


def test_what_has_a_page_of_its_own_is_no_part_of_the_engine() -> None:
    pages = (Path(__file__).parents[2] / "docs" / "reference").glob("*.md")
    lines = [line for page in pages for line in page.read_text(encoding="utf-8").splitlines()]
    listed = {line.rpartition(".")[2] for line in lines if line.startswith(":::")}
    functions = {name for name in FOR_THE_ENGINE if "." not in name}
    assert len(listed) > 100
    assert {"prompt_to_prompt", "EditedImages"} <= listed
    assert functions & listed == set()


CHECKED = {name: one for name, one in FUNCTIONS.items() if name not in UNCHECKED}


def test_every_annotation_has_a_test() -> None:
    wrong = {}
    for name, function in CHECKED.items():
        try:
            Border(function, {})
        except NotImplementedError as error:
            wrong[name] = str(error)
    assert wrong == {}


UNCHECKED_TYPES = {"DiffusionPipeline", "HookedDiffusion"}
"""What toys name for type checkers alone; they look at that argument themselves."""


def test_annotations_name_what_is_there() -> None:
    wrong = {}
    for name, checked in CHECKED.items():
        function = inspect.unwrap(checked)
        known = {"torch": importlib.import_module("torch")}
        if function.__module__.startswith("diffusion_lens.toys"):
            known |= dict.fromkeys(UNCHECKED_TYPES, object)
        for parameter in inspect.signature(function).parameters.values():
            try:
                if isinstance(parameter.annotation, str):
                    eval(parameter.annotation, function.__globals__, known)
            except NameError as error:
                wrong[f"{name}({parameter.name})"] = str(error)
    assert wrong == {}
