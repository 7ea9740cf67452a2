"""Equations: what pymdownx.arithmatex marked as TeX becomes MathML, which browsers draw."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

MARKED = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Replace the equations of a page, of docstrings too."""
    return MARKED.sub(drawn, content)


def drawn(equation: re.Match[str]) -> str:
    """One equation; a block's scrolls where the page is too narrow for it."""
    tag, tex = equation.groups()
    form = {"span": "inline", "div": "block"}[tag]
    return f'<{tag} class="equation">{convert(html.unescape(tex).strip(), display=form)}</{tag}>'
