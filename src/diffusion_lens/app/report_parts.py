"""What a report is made of; every text is escaped."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from plotly.graph_objects import Figure

from diffusion_lens.errors import FigureError
from diffusion_lens.showing.one_line import counted
from diffusion_lens.showing.pictures import png_address
from diffusion_lens.viz import TokenPatterns

ENLARGED = 128
"""Pixels of width below which an image is enlarged, its pixels kept."""


@dataclass(frozen=True)
class Number:
    """A number to be seen first.

    Attributes:
        value: As it is shown.
        meaning: What it is, in what unit, against what.
    """

    value: str
    meaning: str

    def html(self) -> str:
        """Markup."""
        return f"<div><strong>{_text(self.value)}</strong>{_text(self.meaning)}</div>"


@dataclass(frozen=True)
class Numbers:
    """Numbers side by side.

    Attributes:
        numbers: The numbers.
    """

    numbers: Sequence[Number]

    def html(self) -> str:
        """Markup."""
        return f'<div class="numbers">{"".join(number.html() for number in self.numbers)}</div>'


@dataclass(frozen=True)
class Table:
    """Rows of texts and numbers.

    Attributes:
        rows: A dict for each row; the first one names the columns.
        digits: Significant digits of numbers.
    """

    rows: Sequence[dict[str, Any]]
    digits: int = 3

    def html(self) -> str:
        """Markup."""
        if not self.rows:
            return "<p>(no rows)</p>"
        columns = list(self.rows[0])
        head = "".join(self._head(column) for column in columns)
        body = "".join(
            f"<tr>{''.join(self._cell(row.get(column, '')) for column in columns)}</tr>"
            for row in self.rows
        )
        return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'

    def _head(self, column: str) -> str:
        numbers = all(_is_number(row.get(column)) for row in self.rows)
        kind = ' class="number"' if numbers else ""
        return f"<th{kind}>{_text(column)}</th>"

    def _cell(self, value: Any) -> str:
        if _is_number(value):
            shown = f"{value:.{self.digits}g}" if isinstance(value, float) else str(value)
            return f'<td class="number">{shown}</td>'
        return f"<td>{_text(value)}</td>"


@dataclass(frozen=True)
class Images:
    """Images; small ones enlarged, their pixels kept.

    Attributes:
        images: PIL images.
        captions: Below each.
    """

    images: Sequence[Image.Image]
    captions: Sequence[str] = field(default=())

    def html(self) -> str:
        """Markup."""
        captions = self.captions or [""] * len(self.images)
        if len(captions) != len(self.images):
            raise FigureError(
                f"{counted(len(captions), 'caption')} for {counted(len(self.images), 'image')}"
            )
        shown = "".join(
            f'<figure{_size(image)}><img src="{png_address(image)}" alt="{_text(caption)}">'
            f"<figcaption>{_text(caption)}</figcaption></figure>"
            for image, caption in zip(self.images, captions, strict=True)
        )
        return f'<div class="images">{shown}</div>'


@dataclass(frozen=True)
class Code:
    """Text with its line breaks, such as what was run.

    Attributes:
        text: The text.
    """

    text: str

    def html(self) -> str:
        """Markup."""
        return f"<pre>{_text(self.text)}</pre>"


@dataclass(frozen=True)
class Folded:
    """Text that is shown when it is asked for.

    Attributes:
        title: What stands in its place.
        text: The text.
    """

    title: str
    text: str

    def html(self) -> str:
        """Markup."""
        return f"<details><summary>{_text(self.title)}</summary>{Code(self.text).html()}</details>"


Part = str | Numbers | Table | Images | Code | Folded | Figure | TokenPatterns
"""A text is a paragraph."""


def markup(part: Part, name: str) -> str:
    """A part as markup; `name` is the identity of a figure in the page."""
    if isinstance(part, str):
        return f"<p>{_text(part)}</p>"
    if isinstance(part, Figure):
        settings = {"displaylogo": False, "responsive": True}
        drawn = part.to_html(
            full_html=False,
            include_plotlyjs=False,
            auto_play=False,
            config=settings,
            div_id=name,
            default_height=f"{part.layout['height'] or 400}px",
        )
        return f'<div class="card">{drawn}</div>'
    if isinstance(part, TokenPatterns):
        return f'<div class="card">{part._repr_html_()}</div>'
    return part.html()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _size(image: Image.Image) -> str:
    """What tells small images, whose pixels are shown, from others."""
    return ' class="small"' if image.width < ENLARGED else ""


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)
