"""The Python examples of README and documentation run, page by page, top to bottom."""

import ast
import re
from pathlib import Path

import pytest

from diffusion_lens import HookedDiffusion
from diffusion_lens.architectures import registry
from diffusion_lens.testing import TINY_FAMILIES, tiny_denoiser

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^[ >]*(```|~~~)[ \t]*\{?\.?(py|ipython)", re.MULTILINE | re.IGNORECASE)
PAGES = [
    *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))),
    "README.md",
    "CONTRIBUTING.md",
]
NEED_THE_HUB = {("docs/getting_started.md", 1), ("docs/concepts/modular_pipelines.md", 0)}
"""Page and number of the examples that load published weights, which no test does."""


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def examples(page: str) -> list[str]:
    return BLOCK.findall(text_of(page))


def downloads(source: str) -> bool:
    """Whether code, not a comment or a text, loads weights by a name."""
    return any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "from_pretrained"
        for node in ast.walk(ast.parse(source))
    )


def run(page: str) -> list[int]:
    """Run a page's examples in one namespace; the numbers of those that ran."""
    namespace: dict[str, object] = {"__name__": "example"}
    ran = []
    for number, source in enumerate(examples(page)):
        code = compile(source, f"{page}, example {number}", "exec")
        if not downloads(source):
            exec(code, namespace)
            ran.append(number)
    return ran


def test_every_python_fence_is_an_example() -> None:
    """Others, indented ones for instance, would never run."""
    for page in PAGES:
        assert len(FENCE.findall(text_of(page))) == len(examples(page)), page
    assert sum(len(examples(page)) for page in PAGES) > 60


def test_only_what_loads_published_weights_is_left_out() -> None:
    left_out = {
        (page, number)
        for page in PAGES
        for number, source in enumerate(examples(page))
        if downloads(source)
    }
    assert left_out == NEED_THE_HUB
    assert not downloads('model = toy()  # or from_pretrained("...")\ntext = "a.from_pretrained()"')
    assert downloads('model = HookedDiffusion.from_pretrained("some/model")')


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=() if page == "README.md" else pytest.mark.slow)
        for page in PAGES
        if examples(page)
    ],
)
def test_examples_run(page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
    ran = run(page)
    everything = set(range(len(examples(page))))
    assert set(ran) == {number for number in everything if (page, number) not in NEED_THE_HUB}
    if page == "README.md":
        assert ran == [0]


def test_the_page_on_hook_points_lists_all_that_lie_outside_the_blocks() -> None:
    page = text_of("docs/concepts/hook_points.md")
    listed = page.partition("Outside the blocks are")[2].partition("## ")[0]
    models = [HookedDiffusion(tiny_denoiser(family)[0]) for family in TINY_FAMILIES]
    models.append(HookedDiffusion.toy("shapes-unet"))  # what lies in the loop takes a pipeline
    found = {re.sub(r"\.\d+\.", ".{i}.", name) for model in models for name in model.points}
    outside = {name for name in found if not name.startswith(("blocks.", "refiner."))}
    assert set(re.findall(r"`([^`]+)`", listed)) == outside
