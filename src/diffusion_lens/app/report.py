"""A report: one HTML file that holds its figures, their program and its style."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from importlib import resources
from itertools import chain, count
from pathlib import Path

from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs

from diffusion_lens import __version__
from diffusion_lens.app.report_parts import Part, markup

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
{program}
</head>
<body>
<h1>{title}</h1>
{body}
<p class="foot">Made by diffusion_lens {version}. This page needs no network.</p>
</body>
</html>
"""


@dataclass
class Report:
    """A page that is put together section by section.

    Texts are shown as they are written: nothing in them is markup. The program that draws figures
    is in the page once, however many there are; a page without figures has none.

    Attributes:
        title: Of the page.
        lead: What stands above the first section.
        sections: Titles with their parts.
    """

    title: str
    lead: list[Part] = field(default_factory=list)
    sections: list[tuple[str, list[Part]]] = field(default_factory=list)

    def add(self, title: str, *parts: Part) -> None:
        """Append a section.

        Args:
            title: Its title.
            *parts: Texts (paragraphs), figures, and the classes of
                `diffusion_lens.app.report_parts`.
        """
        self.sections.append((title, list(parts)))

    def html(self) -> str:
        """The whole page."""
        names = (f"figure-{number}" for number in count())
        body = [markup(part, next(names)) for part in self.lead]
        for title, parts in self.sections:
            inside = "".join(markup(part, next(names)) for part in parts)
            body.append(f"<section><h2>{html.escape(title)}</h2>{inside}</section>")
        everything = chain(self.lead, *(parts for _, parts in self.sections))
        figures = any(isinstance(part, Figure) for part in everything)
        return PAGE.format(
            title=html.escape(self.title),
            style=resources.files("diffusion_lens.app").joinpath("report.css").read_text("utf-8"),
            program=f"<script>{get_plotlyjs()}</script>" if figures else "",
            body="\n".join(body),
            version=__version__,
        )

    def write(self, path: str | Path) -> Path:
        """Write the page.

        Args:
            path: A file, or a folder that gets `report.html`.

        Returns:
            The file.
        """
        file = Path(path)
        if file.suffix != ".html":
            file = file / "report.html"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(self.html(), encoding="utf-8")
        return file
