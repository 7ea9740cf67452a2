"""Analyses and interventions use what guests can use: public modules, no part of the engine."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "diffusion_lens"
ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / PACKAGE
GUEST = ROOT / "examples" / "extension" / "src"

WHOLE = {
    "activation_cache",
    "authoring",
    "errors",
    "extensions",
    "hook_points",
    "tables",
    "whole_files",
}
"""Modules whose names are public and whose submodules are not."""

OPEN = {
    "activations",
    "analyses",
    "border",
    "datasets",
    "interventions",
    "long_runs",
    "metrics",
    "reducers",
    "showing",
    "toys",
    "viz",
}
"""Modules whose submodules may be imported as well."""

ABOVE_THE_FACE = ("analyses", "interventions", "activations", "long_runs")

ENGINE = {"wiring", "tracker"}
"""Attributes that lead from a model into its engine."""


def reaches(source: str) -> Iterator[str]:
    """What in a file is no part of the public face."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            root, *below = node.module.split(".")
            if (
                root == PACKAGE
                and below
                and below[0] not in OPEN
                and below not in ([w] for w in WHOLE)
            ):
                yield f"line {node.lineno}: from {node.module} import …"
        elif isinstance(node, ast.Import):
            yield from (
                f"line {node.lineno}: import {alias.name}"
                for alias in node.names
                if alias.name.startswith(f"{PACKAGE}.")
            )
        elif isinstance(node, ast.Attribute):
            private = node.attr.startswith("_") and not node.attr.startswith("__")
            others = not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))
            if node.attr in ENGINE or (private and others and _is_model(node.value)):
                yield f"line {node.lineno}: .{node.attr}"


def _is_model(node: ast.expr) -> bool:
    name = node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")
    return name == "model"


FILES = sorted(
    path
    for folder in (*(SOURCE / name for name in ABOVE_THE_FACE), GUEST)
    for path in folder.rglob("*.py")
    if path.name
    != "own_transformer.py"  # an architecture, which is written in the engine's language
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_only_the_public_face_is_used(path: Path) -> None:
    found = list(reaches(path.read_text(encoding="utf-8")))
    assert not found, (
        "an analysis uses public names only; what is missing belongs into diffusion_lens.authoring "
        f"or on HookedDiffusion: {found}"
    )


@pytest.mark.parametrize(
    "source",
    [
        "from diffusion_lens.engine.words import PromptTokens",
        "from diffusion_lens.hooked_diffusion.run import DEFAULT_SEED",
        "from diffusion_lens.architectures import registry",
        "from diffusion_lens.hook_points.site import Site",
        "import diffusion_lens.engine.steps",
        "def f():\n    from diffusion_lens.engine import steps",
        "model.wiring.registrations",
        "self.model.wiring",
        "run(tracker=x).tracker",
        "model._needed_pipe('this')",
    ],
)
def test_a_reach_past_it_is_caught(source: str) -> None:
    assert len(list(reaches(source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import torch\nimport diffusion_lens",
        "from diffusion_lens import HookedDiffusion, Site",
        "from diffusion_lens.authoring import PromptTokens",
        "from diffusion_lens.toys.shapes.world import CONCEPTS",
        "self._kept.append(model.points)",
    ],
)
def test_what_is_public_is_let_through(source: str) -> None:
    assert list(reaches(source)) == []


def test_everything_on_the_face_is_used_and_in_the_docs() -> None:
    face = ast.parse((SOURCE / "authoring.py").read_text(encoding="utf-8"))
    names = {
        str(alias.asname)
        for node in face.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    used = {name for path in FILES for name in _taken_from_face(path)}
    assert names == used
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []


def _taken_from_face(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == f"{PACKAGE}.authoring":
            yield from (alias.name for alias in node.names)
