"""Imports inside diffusion_lens point down the floors of docs/architecture.md, never up."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = "diffusion_lens"
SOURCE = Path(__file__).parents[1] / "src" / PACKAGE

# From top to bottom, by the first name below the package. A module may import from its own floor
# and from every floor below it. A new top-level module is added here, and to docs/architecture.md.
FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"cli", "app", "__main__"}),
    frozenset({"analyses", "training"}),
    frozenset({"toys", "testing"}),
    frozenset({"interventions", "activations"}),
    frozenset({"long_runs"}),
    frozenset({"authoring"}),
    frozenset({"hooked_diffusion"}),
    frozenset({"concept_streams"}),
    frozenset({"describing"}),
    frozenset({"engine"}),
    frozenset({"architectures", "activation_cache", "reducers"}),
    frozenset({"hook_points", "extensions"}),
    frozenset({"border"}),
    frozenset({"showing"}),
    frozenset({"errors", "whole_files"}),
)

# Beside the floors: they know nothing of models. They import each other, `border`, `showing` and
# `errors`; `toys` and everything above it may import them.
APART = frozenset({"metrics", "datasets", "tables", "viz"})
APART_MAY_IMPORT = APART | {"border", "errors", "showing"}
APART_IMPORTED_FROM = 3  # index of the floor of `toys`

# (importing, imported), allowed inside functions only: `HookedDiffusion.toy` and
# `from_pretrained` load a shipped model.
LAZY_EXCEPTIONS = frozenset({("hooked_diffusion", "toys")})


@dataclass(frozen=True)
class Import:
    """One import of something in the package: the module's full name, the names taken from it."""

    module: str
    name: str | None
    line: int
    in_function: bool


def imports_of(tree: ast.AST, *, package: str, in_function: bool = False) -> Iterator[Import]:
    """Every import of the package below `tree`, TYPE_CHECKING blocks and functions included."""
    for node in ast.iter_child_nodes(tree):
        inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, None, node.lineno, inside)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                module = ".".join([*parents, *filter(None, [module])])
            for alias in node.names:
                yield Import(module, alias.name, node.lineno, inside)
        elif isinstance(node, ast.Call) and _called_name(node) in ("import_module", "__import__"):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield Import(argument.value, None, node.lineno, inside)
        yield from imports_of(node, package=package, in_function=inside)


def _called_name(call: ast.Call) -> str | None:
    if isinstance(call.func, ast.Attribute):
        return call.func.attr
    return call.func.id if isinstance(call.func, ast.Name) else None


def public_homes(init_source: str) -> dict[str, str]:
    """For each name that `diffusion_lens/__init__.py` re-exports, its top-level module."""
    return {
        found.name: found.module.split(".")[1]
        for found in imports_of(ast.parse(init_source), package=PACKAGE)
        if found.name and found.module.startswith(f"{PACKAGE}.")
    }


def target_of(found: Import, homes: dict[str, str]) -> str | None:
    """The top-level module that an import reaches; None outside the package or for its dunders."""
    root, *below = found.module.split(".")
    if root != PACKAGE:
        return None
    if below:
        return below[0]
    if found.name is None:
        return "cli"  # `import diffusion_lens` reaches everything, like the top floor
    if found.name.startswith("__"):
        return None
    return homes.get(found.name, found.name)


def floor_of(module: str) -> int:
    """Index into FLOORS, 0 at the top; `len(FLOORS)` for the modules apart."""
    if module in APART:
        return len(FLOORS)
    for index, floor in enumerate(FLOORS):
        if module in floor:
            return index
    raise LookupError(
        f"{PACKAGE}.{module} stands on no floor: add '{module}' to FLOORS (or APART) in "
        f"tests/test_floors.py and to the diagram in docs/architecture.md"
    )


def is_allowed(importer: str, target: str, *, in_function: bool) -> bool:
    """Whether top-level module `importer` may import top-level module `target`."""
    if importer == target or (in_function and (importer, target) in LAZY_EXCEPTIONS):
        return True
    if importer in APART:
        return target in APART_MAY_IMPORT
    if target in APART:
        return floor_of(importer) <= APART_IMPORTED_FROM
    return floor_of(importer) <= floor_of(target)


def violations(source: str, *, path: str, homes: dict[str, str]) -> list[str]:
    """What in `source` points up. `path` is relative to the package: 'viz/overlay.py'."""
    parts = Path(path).with_suffix("").parts
    importer = parts[0]
    package = ".".join([PACKAGE, *parts[:-1]])
    floor_of(importer)
    found_upward = []
    for found in imports_of(ast.parse(source), package=package):
        target = target_of(found, homes)
        if target is None:
            continue
        floor_of(target)
        if not is_allowed(importer, target, in_function=found.in_function):
            where = "." if found.name is None else f" ({found.name})."
            found_upward.append(
                f"{path}:{found.line}: '{importer}' imports {found.module}{where} "
                f"'{target}' is not below '{importer}'."
            )
    return found_upward


def modules() -> list[str]:
    """Every module of the package except the root's own `__init__`, relative to the package."""
    paths = sorted(SOURCE.rglob("*.py"))
    return [p.relative_to(SOURCE).as_posix() for p in paths if p != SOURCE / "__init__.py"]


HOMES = public_homes((SOURCE / "__init__.py").read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", modules())
def test_imports_point_down(path: str) -> None:
    source = (SOURCE / path).read_text(encoding="utf-8")
    found = violations(source, path=path, homes=HOMES)
    assert not found, "\n" + "\n".join(found)


def test_there_are_modules_to_check() -> None:
    assert modules()


def test_no_module_stands_on_two_floors() -> None:
    names = [name for floor in (*FLOORS, APART) for name in floor]
    assert len(names) == len(set(names))


MADE_UP_HOMES = {"HookedDiffusion": "hooked_diffusion", "Site": "hook_points"}

UPWARD = {
    "a plain import": ("engine/attention.py", "import diffusion_lens.viz"),
    "a from-import": ("engine/attention.py", "from diffusion_lens.hooked_diffusion import X"),
    "under TYPE_CHECKING": (
        "hook_points/site.py",
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from diffusion_lens.engine import session",
    ),
    "inside a function": ("errors.py", "def f():\n    from diffusion_lens.hook_points import Site"),
    "inside a method of a class": (
        "reducers.py",
        "class A:\n    def f(self):\n        import diffusion_lens.engine.steps",
    ),
    "by the public name": ("engine/steps.py", "from diffusion_lens import HookedDiffusion"),
    "a submodule of the package": ("engine/steps.py", "from diffusion_lens import analyses"),
    "the whole package": ("analyses/patching.py", "import diffusion_lens"),
    "a relative import": ("engine/steps.py", "from ..viz import plot"),
    "by importlib": (
        "errors.py",
        "import importlib\nimportlib.import_module('diffusion_lens.engine')",
    ),
    "the exception, outside a function": (
        "hooked_diffusion.py",
        "from diffusion_lens.toys import load_toy",
    ),
    "a module apart that knows models": (
        "metrics/clip.py",
        "from diffusion_lens.hook_points import Site",
    ),
    "a low floor that scores": ("engine/steps.py", "from diffusion_lens.metrics import clip"),
}

DOWNWARD = {
    "a lower floor": ("cli.py", "from diffusion_lens.viz import plot_overlay"),
    "the same floor": ("architectures/flux.py", "import diffusion_lens.activation_cache"),
    "the same module": ("engine/session.py", "from diffusion_lens.engine.steps import StepCounter"),
    "a relative import": ("engine/session.py", "from .steps import StepCounter"),
    "public names": ("analyses/patching.py", "from diffusion_lens import HookedDiffusion, Site"),
    "a low public name": ("engine/session.py", "from diffusion_lens import Site, __version__"),
    "other packages": ("errors.py", "import torch\nfrom diffusers import DiffusionPipeline"),
    "the exception": (
        "hooked_diffusion/model.py",
        "class H:\n    def toy(self):\n        from diffusion_lens.toys import load_toy",
    ),
    "modules apart, from above": ("analyses/daam.py", "from diffusion_lens.metrics import iou"),
    "modules apart, among themselves": ("metrics/iou.py", "import diffusion_lens.datasets"),
}


@pytest.mark.parametrize(("path", "source"), UPWARD.values(), ids=UPWARD.keys())
def test_an_upward_import_is_caught(path: str, source: str) -> None:
    (message,) = violations(source, path=path, homes=MADE_UP_HOMES)
    assert message.startswith(f"{path}:{len(source.splitlines())}: ")
    assert "is not below" in message


@pytest.mark.parametrize(("path", "source"), DOWNWARD.values(), ids=DOWNWARD.keys())
def test_a_downward_import_is_allowed(path: str, source: str) -> None:
    assert violations(source, path=path, homes=MADE_UP_HOMES) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("novelty/core.py", ""),
        ("cli.py", "import diffusion_lens.novelty"),
        ("cli.py", "from diffusion_lens import novelty"),
    ],
)
def test_an_unknown_module_says_where_to_add_it(path: str, source: str) -> None:
    with pytest.raises(LookupError, match=r"add 'novelty' to FLOORS .* tests/test_floors\.py"):
        violations(source, path=path, homes={})


def test_public_names_are_traced_to_their_modules() -> None:
    source = (
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n"
        "    from diffusion_lens.hook_points.site import Site as Site\n"
    )
    assert public_homes(source) == {"Site": "hook_points"}
