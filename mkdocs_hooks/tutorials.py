"""Tutorials: each notebook is run when the site is built and becomes a page with what it gave.

A cell that fails or that writes to stderr, as a warning does, fails the build. What runs gave is
kept in `.cache/tutorials` for as long as notebook, package and installed versions stay the same.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import plotly
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

FOLDER = "tutorials/"
CACHE = Path(".cache/tutorials")
SECONDS = 300
PLOTLY = "application/vnd.plotly.v1+json"
DRAWING = ("javascripts/plotly.min.js", "javascripts/figures.js")
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PLOTLY_RENDERER": "plotly_mimetype",
    "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm, wherever ipywidgets are not installed
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",  # it says what else could be installed
}

_running: dict[str, Future[NotebookNode]] = {}


class Notebook(File):
    """A notebook that is a page; links name it as it is called in the repository."""

    def is_documentation_page(self) -> bool:
        """It is."""
        return True


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Begin to run the notebooks, `WORKERS` at a time."""
    installed = state_of_installation()
    used = set()
    pool = ThreadPoolExecutor(int(os.environ.get("WORKERS", "2")))
    for file in [file for file in files if file.src_uri.startswith(FOLDER)]:
        path = Path(str(file.abs_src_path))
        notebook = nbformat.read(path, as_version=4)
        kept = CACHE / f"{key(notebook, installed)}.ipynb"
        used.add(kept)
        _running[file.src_uri] = pool.submit(run, path, notebook, kept)
        files.remove(file)
        files.append(Notebook(file.src_uri, file.src_dir, file.dest_dir, file.use_directory_urls))
    pool.shutdown(wait=False)
    for stale in set(CACHE.glob("*.ipynb")) - used:
        stale.unlink()
    library = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    files.append(File.generated(config, DRAWING[0], abs_src_path=str(library)))
    return files


def on_page_read_source(page: Page, config: MkDocsConfig) -> str | None:  # noqa: ARG001
    """A notebook's page, as soon as it has run."""
    if page.file.src_uri not in _running:
        return None
    return markdown(_running.pop(page.file.src_uri).result())


def on_build_error(error: Exception) -> None:  # noqa: ARG001
    """Begin no more runs."""
    for one in _running.values():
        one.cancel()
    _running.clear()


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:  # noqa: ARG001
    """Pages with figures load what draws them."""
    if 'class="plotly-figure"' not in output:
        return output
    up = "../" * page.url.count("/")
    scripts = "".join(f'<script src="{up}{path}" defer></script>' for path in DRAWING)
    return output.replace("</head>", f"{scripts}</head>")


def state_of_installation() -> bytes:
    """A digest of everything but the notebook that its outputs follow from."""
    state = hashlib.sha256(sys.version.encode())
    versions = {(one.name, one.version) for one in importlib.metadata.distributions()}
    state.update(repr(sorted(versions)).encode())
    spec = importlib.util.find_spec("diffusion_lens")
    assert spec is not None and spec.origin is not None
    package = Path(spec.origin).parent
    for path in sorted(package.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            state.update(path.relative_to(package).as_posix().encode())
            state.update(hashlib.sha256(path.read_bytes()).digest())
    return state.digest()


def key(notebook: NotebookNode, installed: bytes) -> str:
    """What the outputs of a notebook's code are kept under."""
    sources = [cell.source for cell in code_of(notebook)]
    return hashlib.sha256(installed + repr(sources).encode()).hexdigest()


def code_of(notebook: NotebookNode) -> list[NotebookNode]:
    """The cells that run."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def run(path: Path, notebook: NotebookNode, kept: Path) -> NotebookNode:
    """A notebook with its outputs, from before if its code has not changed.

    Raises:
        PluginError: If a cell fails, or writes to stderr.
    """
    if kept.is_file():
        before = nbformat.read(kept, as_version=4)
        for cell, same in zip(code_of(notebook), code_of(before), strict=True):
            cell.outputs = same.outputs
        return notebook
    with TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            extra_arguments=["--Application.log_level=ERROR"],
            timeout=SECONDS,
            resources={"metadata": {"path": folder}},
        )
        try:
            client.execute(env={**os.environ, **SETTINGS})
        except CellExecutionError as error:
            raise PluginError(f"{path.name} fails:\n{error}") from error
    for cell in code_of(notebook):
        for output in cell.outputs:
            if output.get("name") == "stderr":
                raise PluginError(f"{path.name} writes to stderr:\n{output.text}")
    kept.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, kept)
    return notebook


def markdown(notebook: NotebookNode) -> str:
    """A notebook as a page."""
    parts = []
    for cell in notebook.cells:
        parts.append(fenced(cell.source, "python") if cell.cell_type == "code" else cell.source)
        parts.extend(map(shown, joined(cell.get("outputs", []))))
    return "\n\n".join(parts) + "\n"


def joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Outputs with what was printed in a row in one piece."""
    pieces: list[NotebookNode] = []
    for output in outputs:
        if pieces and output.output_type == pieces[-1].output_type == "stream":
            pieces[-1] = NotebookNode({**pieces[-1], "text": pieces[-1].text + output.text})
        else:
            pieces.append(output)
    return pieces


def shown(output: NotebookNode) -> str:
    """What a cell gave: text, a picture, or a figure that the page's script draws."""
    if output.output_type == "stream":
        return fenced(output.text.rstrip("\n"), ".text .output .no-copy")
    if PLOTLY in output.data:
        figure = json.dumps(output.data[PLOTLY], separators=(",", ":")).replace("</", "<\\/")
        height = output.data[PLOTLY]["layout"].get("height", 450)
        return (
            f'<div class="plotly-figure" style="height: {height}px">'
            f'<script type="application/json">{figure}</script></div>'
        )
    if "image/png" in output.data:
        source = output.data["image/png"].replace("\n", "")
        return f'<p><img alt="" src="data:image/png;base64,{source}"></p>'
    return fenced(output.data["text/plain"], ".text .output .no-copy")


def fenced(text: str, language: str) -> str:
    """A block of code, whatever is in it."""
    fence = "`" * 6
    return f"{fence} {{ {language if language[0] == '.' else '.' + language} }}\n{text}\n{fence}"
