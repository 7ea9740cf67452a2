"""Equations of the documentation are drawn by the browser itself."""

from __future__ import annotations

import pytest

pytest.importorskip("latex2mathml", reason="the extra `docs` is not installed")

from mkdocs_hooks import equations


def test_equations_become_mathml() -> None:
    page = (
        r'<p>With <span class="arithmatex">\(a &lt; b_1\)</span> and</p>'
        r'<div class="arithmatex">\[' + "\n" + r"\frac{m}{2}" + "\n" + r"\]</div>"
    )
    drawn = equations.on_page_content(page, page=None, config=None, files=None)
    assert "arithmatex" not in drawn and "\\" not in drawn
    assert drawn.count("<math ") == 2
    assert '<span class="equation"><math' in drawn and 'display="inline"' in drawn
    assert '<div class="equation"><math' in drawn and 'display="block"' in drawn
    assert "&#x0003C;" in drawn or "&lt;" in drawn
    assert "<mfrac>" in drawn


def test_other_text_stays() -> None:
    page = '<p>$5 and <code>\\(x\\)</code> and <span class="arithmatex">x</span></p>'
    assert equations.on_page_content(page) == page
