"""What `import diffusion_lens` costs and offers, and what is in the wheel."""

import ast
import inspect
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

import diffusion_lens

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "diffusion_lens"
PUBLIC = sorted(getattr(diffusion_lens, "__all__", ()))

IMPORT_AND_MEASURE = """
import json, sys, time
start = time.perf_counter()
import diffusion_lens
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "modules": sorted(m for m in sys.modules if "." not in m)}))
"""


def fresh_import() -> dict:
    command = [sys.executable, "-c", IMPORT_AND_MEASURE]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_import_is_fast_and_leaves_the_heavy_packages_alone() -> None:
    runs = [fresh_import() for _ in range(3)]
    assert min(run["seconds"] for run in runs) < 0.3
    heavy = {"torch", "diffusers", "transformers", "accelerate", "plotly", "circuitsvis"}
    assert not heavy & set(runs[0]["modules"])


def test_all_is_declared_without_repeats() -> None:
    assert PUBLIC, "diffusion_lens.__all__ is missing or empty"
    assert len(PUBLIC) == len(set(PUBLIC))
    assert set(PUBLIC) <= set(dir(diffusion_lens))


def test_every_reexport_is_in_all() -> None:
    tree = ast.parse((SOURCE / "__init__.py").read_text(encoding="utf-8"))
    reexported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    }
    assert reexported <= set(PUBLIC), f"not in __all__: {sorted(reexported - set(PUBLIC))}"


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_resolve(name: str) -> None:
    assert getattr(diffusion_lens, name) is not None


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_have_a_docstring(name: str) -> None:
    value = getattr(diffusion_lens, name)
    if not (inspect.isclass(value) or inspect.isroutine(value) or isinstance(value, ModuleType)):
        return  # a constant: its type would answer for it
    own = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__  # not inherited
    written = own or ""
    assert written.strip(), f"diffusion_lens.{name} has no docstring"
    assert not written.startswith(f"{name}("), f"diffusion_lens.{name} has only a generated one"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        getattr(diffusion_lens, "no_such_name")  # noqa: B009 (pyright would see through it)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path).namelist()


def test_the_wheel_holds_the_package_and_nothing_else(wheel: list[str]) -> None:
    assert "diffusion_lens/py.typed" in wheel
    folders = {name.split("/")[0] for name in wheel}
    assert folders == {"diffusion_lens", f"diffusion_lens-{version()}.dist-info"}


def test_the_wheel_holds_every_file_of_the_package(wheel: list[str]) -> None:
    files = {
        path.relative_to(SOURCE.parent).as_posix()
        for path in SOURCE.rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".pyo")
    }
    assert files <= set(wheel), f"missing: {sorted(files - set(wheel))}"


def version() -> str:
    import importlib.metadata

    return importlib.metadata.version("diffusion-lens")
