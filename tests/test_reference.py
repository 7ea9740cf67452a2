"""Every public name stands in the reference, on exactly one of its pages."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from diffusion_lens import metrics

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted((DOCS / "reference").glob("*.md"))
DIRECTIVE = re.compile(r"^::: (\S+)", re.MULTILINE)
MODULES = (
    "diffusion_lens",
    "diffusion_lens.activations",
    "diffusion_lens.analyses",
    "diffusion_lens.analyses.concept_attention",
    "diffusion_lens.analyses.patching",
    "diffusion_lens.datasets",
    "diffusion_lens.interventions",
    "diffusion_lens.reducers",
    "diffusion_lens.testing",
    "diffusion_lens.toys",
    "diffusion_lens.viz",
    *(f"diffusion_lens.metrics.{one.name}" for one in pkgutil.iter_modules(metrics.__path__)),
)


def resolved(path: str) -> Any:
    """What a directive names."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            value = getattr(value, part)
        return value
    raise AssertionError(path)


LISTED = [
    (page.name, path)
    for page in PAGES
    for path in DIRECTIVE.findall(page.read_text(encoding="utf-8"))
]
VALUES = [resolved(path) for _, path in LISTED]
WHOLE = {value.__name__ for value in VALUES if isinstance(value, ModuleType)}


def public(module: ModuleType) -> dict[str, Any]:
    """The functions and classes of `__all__`, else those that were not borrowed from elsewhere."""
    declared = getattr(module, "__all__", None)
    names = declared or [name for name in dir(module) if not name.startswith("_")]
    return {
        name: value
        for name in names
        if inspect.isfunction(value := getattr(module, name)) or inspect.isclass(value)
        if declared or value.__module__.startswith(module.__name__)
    }


@pytest.mark.parametrize("name", MODULES)
def test_public_names_stand_in_the_reference(name: str) -> None:
    module = importlib.import_module(name)
    missing = [
        one
        for one, value in public(module).items()
        if not any(value is listed for listed in VALUES) and not {name, value.__module__} & WHOLE
    ]
    assert missing == [], "add `::: path` to a page of docs/reference"


def test_no_name_stands_there_twice() -> None:
    assert len(VALUES) > 130
    assert [path for path, times in Counter(path for _, path in LISTED).items() if times > 1] == []


def test_other_pages_leave_names_to_the_reference() -> None:
    """Two places would be two anchors for every link to choose from."""
    others = [page for page in DOCS.rglob("*.md") if page not in PAGES]
    assert [page.name for page in others if DIRECTIVE.search(page.read_text("utf-8"))] == []


def test_pages_stand_in_the_index_and_in_the_navigation() -> None:
    index = (DOCS / "reference" / "index.md").read_text(encoding="utf-8")
    navigation = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    for page in PAGES:
        assert page.name == "index.md" or f"]({page.name})" in index, page.name
        assert f"reference/{page.name}" in navigation, page.name
