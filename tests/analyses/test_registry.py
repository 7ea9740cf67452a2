"""Analyses by name, and what entry points must give."""

import inspect
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from typing import Any

import importlib_metadata
import pytest
import typer

from diffusion_lens import analyses as package
from diffusion_lens.analyses import registry
from diffusion_lens.cli import app
from diffusion_lens.errors import ExtensionError


def declare(monkeypatch: pytest.MonkeyPatch, entries: Sequence[EntryPoint]) -> None:
    def found(*, group: str) -> Any:
        assert group == "diffusion_lens.analyses"
        return entries

    monkeypatch.setattr(registry, "entry_points", found)


def test_the_shipped_analyses_are_those_of_the_package() -> None:
    for name in ("attention_maps", "concept_attention", "head_relevance", "ordered_weakening"):
        assert registry.analysis(name) is getattr(package, name)


@pytest.mark.parametrize("of", [EntryPoint, importlib_metadata.EntryPoint], ids=["std", "backport"])
def test_an_analysis_of_another_package_is_found(
    of: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once `importlib_metadata` is imported, as diffusers does, its class answers as well."""
    declare(monkeypatch, [of("count", "math:fsum", registry.GROUP)])
    assert registry.analysis("count")([1, 2]) == 3


def test_a_mistyped_name_is_refused_with_the_closest() -> None:
    with pytest.raises(ExtensionError, match="Closest: 'attention_maps'"):
        registry.analysis("attention_map")


def test_what_is_no_function_is_refused_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    declare(monkeypatch, [EntryPoint("pi", "math:pi", registry.GROUP)])
    with pytest.raises(ExtensionError, match=r"'pi' of math:pi in .* is a float, not a function"):
        registry.analysis("pi")
    with pytest.warns(UserWarning, match="left out: the entry point 'pi'"):
        assert set(registry.analyses()) == set(registry.SHIPPED)


def test_a_name_that_is_taken_is_refused_and_stands_in_no_other_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    declare(monkeypatch, [EntryPoint("attention_maps", "math:fsum", registry.GROUP)])
    for ask in (registry.analyses, lambda: registry.analysis("attention_maps")):
        with pytest.raises(
            ExtensionError, match=r"called 'attention_maps': of diffusion_lens and of math:fsum"
        ):
            ask()
    assert registry.analysis("head_relevance") is package.head_relevance


@pytest.mark.parametrize("row", registry.ROWS, ids=lambda row: row.name)
def test_a_row_tells_what_is_there(row: registry.Row) -> None:
    function = registry.analysis(row.name)
    assert function is getattr(package, row.name)
    assert function.__module__.startswith(f"diffusion_lens.analyses.{row.module}")
    assert inspect.signature(function).return_annotation == row.result
    first, *others = row.command.split(" ")
    known: Any = typer.main.get_command(app)
    assert not first or first in known.commands
    if first == "hrv":
        assert others[0] in known.commands["hrv"].commands
