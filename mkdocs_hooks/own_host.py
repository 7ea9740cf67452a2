"""Pages load nothing from other hosts: a build with one that would, fails."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError

ELSEWHERE = r"""["']?(?:https?:)?//[^"'\s>)]+"""
ATTRIBUTES = r"""(?:[^>"']|"[^"]*"|'[^']*')*?"""
FETCHED = re.compile(
    rf"<(?:script|img|iframe|source|video|audio|embed|track)\b{ATTRIBUTES}\ssrc(?:set)?={ELSEWHERE}"
    rf"|<link\b(?![^>]*\brel=[\"']?(?:canonical|prev|next)\b){ATTRIBUTES}\shref={ELSEWHERE}"
    rf"|url\(\s*{ELSEWHERE}"
    rf"|@import\s+{ELSEWHERE}"
    rf"|\bimport\b[^;\"'<]*[\"']{ELSEWHERE}",
    re.IGNORECASE,
)
STARS = ' data-md-component="source"'
"""The theme asks GitHub for the stars of the repository that an element with this names."""


def on_post_page(output: str, **_: object) -> str:
    """Link to the repository without asking its host about it."""
    return output.replace(STARS, "")


def on_post_build(config: MkDocsConfig) -> None:
    """Look at everything that was written."""
    site = Path(config.site_dir)
    found = [
        f"{path.relative_to(site)}: {one}"
        for suffix in ("html", "css")
        for path in sorted(site.rglob(f"*.{suffix}"))
        for one in fetched(path.read_text(encoding="utf-8"))
    ]
    if found:
        raise PluginError("pages would load from other hosts:\n" + "\n".join(found))


def fetched(text: str) -> list[str]:
    """What HTML or CSS makes a browser load from other hosts without being asked."""
    return [one.group() for one in FETCHED.finditer(text)]
