"""The Python examples of the documentation run, page by page, top to bottom."""

import re
from pathlib import Path

import pytest

from diffusion_lens.architectures import registry

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DOWNLOADS = "from_pretrained("
PAGES = [
    *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))),
    "README.md",
]


def examples(page: str) -> list[str]:
    return BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


def test_there_are_examples() -> None:
    assert sum(len(examples(page)) for page in PAGES) > 20


@pytest.mark.parametrize("page", [page for page in PAGES if examples(page)])
def test_examples_run(page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_REGISTERED", dict(registry._REGISTERED))
    namespace: dict[str, object] = {"__name__": "example"}
    for number, source in enumerate(examples(page)):
        code = compile(source, f"{page}, example {number}", "exec")
        if DOWNLOADS not in source:
            exec(code, namespace)
