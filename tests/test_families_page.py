"""The table of docs/families.md says what the descriptions say."""

import pytest

from mkdocs_hooks import families


@pytest.mark.slow
def test_the_table_is_that_of_the_descriptions() -> None:
    page = families.PAGE.read_text(encoding="utf-8")
    assert families.written(page) == page, "run `python mkdocs_hooks/families.py`"


def test_every_shipped_family_has_a_tiny_model() -> None:
    shown = {
        row.split(" | ")[1]
        for row in families.PAGE.read_text(encoding="utf-8").splitlines()
        if row.startswith("| ") and "`" in row
    }
    assert {f"`{spec.denoiser}`" for spec in families.SHIPPED} <= shown
