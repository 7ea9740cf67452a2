"""Public functions with arguments that they take, to be given wrong ones one at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.border.cases_of_analyses import of_heads, of_maps, of_patching
from tests.border.cases_of_editing import of_edits, of_excited, of_image_scores, of_references
from tests.border.cases_of_models import of_caches, of_hook_makers, of_runs, of_the_model
from tests.border.cases_of_the_rest import of_figures, of_metrics, of_toys
from tests.border.world import (
    Case,
    World,
)


def all_cases(world: World) -> list[Case]:
    """Every case, in a fixed order."""
    found: list[Case] = []

    def add(name: str, call: Callable[..., Any], /, **arguments: Any) -> None:
        found.append(Case(name, call, arguments))

    for part in (of_runs, of_the_model, of_caches, of_hook_makers, of_maps):
        part(add, world)
    for part in (of_heads, of_patching, of_metrics, of_figures, of_toys):
        part(add, world)
    for part in (of_edits, of_excited, of_references, of_image_scores):
        part(add, world)
    return found
