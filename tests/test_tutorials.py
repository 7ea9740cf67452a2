"""The tutorials are committed as they are read: without outputs, with a link, in the navigation.

The documentation's build runs them and fails where one of their cells does.
"""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))


def test_there_are_six_and_they_are_numbered() -> None:
    assert [path.name[0] for path in NOTEBOOKS] == ["1", "2", "3", "4", "5", "6"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_without_outputs(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code and all(not cell["outputs"] for cell in code)
    assert all(cell["execution_count"] is None for cell in code)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_opens_in_colab_and_stands_in_the_navigation(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert f"blob/main/tutorials/{path.name}" in text
    assert f"tutorials/{path.name}" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
