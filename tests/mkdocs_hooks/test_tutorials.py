"""What the documentation's build makes of notebooks, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")

import nbformat
from mkdocs.exceptions import PluginError
from nbformat import v4

from mkdocs_hooks import tutorials


def notebook(folder: Path, *sources: str) -> Path:
    path = folder / "some.ipynb"
    cells = [v4.new_code_cell(source) for source in sources]
    kernel = {"kernelspec": {"name": "python3", "display_name": "", "language": "python"}}
    nbformat.write(v4.new_notebook(cells=cells, metadata=kernel), path)
    return path


def run(path: Path) -> nbformat.NotebookNode:
    return tutorials.run(path, nbformat.read(path, as_version=4), path.parent / "kept")


def figure(title: str) -> dict[str, Any]:
    return {"data": [], "layout": {"height": 321, "title": {"text": title}}}


@pytest.mark.slow
def test_a_cell_that_fails_fails_the_build(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"some\.ipynb fails(.|\n)*no such thing"):
        run(notebook(tmp_path, "raise ValueError('no such thing')"))
    assert not (tmp_path / "kept").exists()


@pytest.mark.slow
def test_a_warning_fails_the_build(tmp_path: Path) -> None:
    path = notebook(tmp_path, "import warnings\nwarnings.warn('mind this')")
    with pytest.raises(PluginError, match=r"some\.ipynb writes to stderr(.|\n)*mind this"):
        run(path)
    assert not (tmp_path / "kept").exists()


@pytest.mark.slow
def test_what_was_run_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = notebook(tmp_path, "print(6 * 7)", "6 * 9")
    first = run(path)
    monkeypatch.setattr(tutorials, "NotebookClient", None)
    again = run(path)
    assert tutorials.markdown(first) == tutorials.markdown(again)
    assert "\n42\n" in tutorials.markdown(again)
    assert "\n54\n" in tutorials.markdown(again)


def test_the_key_follows_code_and_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, text = v4.new_code_cell, v4.new_markdown_cell
    installed = tutorials.state_of_installation()
    assert installed == tutorials.state_of_installation()
    books = [
        v4.new_notebook(cells=cells)
        for cells in ([code("1")], [text("new"), code("1")], [code("2")], [code("1"), code("")])
    ]
    keys = [tutorials.key(book, installed) for book in books]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    assert keys[0] != tutorials.key(books[0], b"other")
    package = tmp_path / "diffusion_lens"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(
        tutorials.importlib.util, "find_spec", lambda _: Spec(str(package / "__init__.py"))
    )
    small = tutorials.state_of_installation()
    (package / "__init__.py").write_text("changed = True")
    assert len({installed, small, tutorials.state_of_installation()}) == 3


class Spec:
    def __init__(self, origin: str) -> None:
        self.origin = origin


def test_pages_show_what_cells_printed_drew_and_gave() -> None:
    outputs = [
        v4.new_output("stream", name="stdout", text="one\n"),
        v4.new_output("stream", name="stdout", text="two\n"),
        v4.new_output("display_data", {tutorials.PLOTLY: figure("</script>"), "text/plain": "F"}),
        v4.new_output("display_data", {"image/png": "aGFs\nbG8=", "text/plain": "P"}),
        v4.new_output("execute_result", {"text/plain": "'```'"}),
    ]
    cells = [v4.new_markdown_cell("# Title"), v4.new_code_cell("x = 1", outputs=outputs)]
    page = tutorials.markdown(v4.new_notebook(cells=cells))
    assert page.startswith("# Title\n\n`````` { .python }\nx = 1\n``````\n")
    assert "\none\ntwo\n``````" in page
    assert 'style="height: 321px"' in page
    assert "<\\/script>" in page and page.count("</script>") == 1
    assert 'src="data:image/png;base64,aGFsbG8="' in page
    assert page.endswith("\n'```'\n``````\n")
