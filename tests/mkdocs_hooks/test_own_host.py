"""The documentation loads nothing from other hosts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")

from mkdocs.exceptions import PluginError

from mkdocs_hooks import own_host

LOADED = [
    '<script src="https://cdn.example/m.js"></script>',
    "<script defer src='//cdn.example/m.js'></script>",
    '<img alt="a > b" src=http://example.org/badge.svg>',
    '<link rel="stylesheet" href="https://fonts.example/css">',
    '<link href="https://fonts.example" rel="preconnect">',
    '<iframe src="https://example.org"></iframe>',
    "p { background: url(https://example.org/x.png) }",
    '@import "https://example.org/x.css";',
    "import mermaid from 'https://cdn.example/m.mjs'",
    'await import("https://cdn.example/m.mjs")',
]
LEFT = [
    '<a href="https://example.org">a link</a>',
    '<link rel="canonical" href="https://example.org/page/">',
    '<script src="../javascripts/figures.js"></script>',
    '<img src="data:image/png;base64,aGFsbG8=">',
    '<math xmlns="http://www.w3.org/1998/Math/MathML">',
    "p { background: url(x.png) }",
]


@pytest.mark.parametrize("text", LOADED)
def test_what_is_loaded_fails_the_build(text: str, tmp_path: Path) -> None:
    config: Any = SimpleNamespace(site_dir=str(tmp_path))
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "index.html").write_text(text)
    with pytest.raises(PluginError, match=r"page/index\.html: .*//.*example"):
        own_host.on_post_build(config)


@pytest.mark.parametrize("text", LEFT)
def test_what_is_not_loaded_does_not(text: str, tmp_path: Path) -> None:
    config: Any = SimpleNamespace(site_dir=str(tmp_path))
    (tmp_path / "index.html").write_text(text)
    own_host.on_post_build(config)


def test_the_repository_is_linked_but_not_asked_for_its_stars() -> None:
    pytest.importorskip("material")
    from material import __file__ as theme

    source = Path(str(theme)).parent / "templates" / "partials" / "source.html"
    assert own_host.STARS in source.read_text(encoding="utf-8")
    link = '<a href="https://example.org" class="md-source" data-md-component="source">'
    assert own_host.on_post_page(link) == '<a href="https://example.org" class="md-source">'
