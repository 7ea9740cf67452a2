"""Values at tokens, and patterns between tokens."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go

from diffusion_lens.border import public
from diffusion_lens.errors import FigureError
from diffusion_lens.viz.style import ABSENT, MOST_ROWS, colour_axis, finish, ticks
from diffusion_lens.viz.values import array, labels, limits

MOST_PATTERN_VALUES = 400_000


@public
def tokens(
    words: Sequence[str],
    values: Any,
    *,
    rows: Sequence[Any] | None = None,
    title: str | None = None,
    note: str = "",
    value_name: str = "",
    zero_centred: bool | None = None,
) -> go.Figure:
    """A prompt's words or tokens, each coloured by its value.

    Args:
        words: The words or tokens.
        values: A number for each, or several rows of them; NaN is absent.
        rows: Labels of the rows.
        title: Above the figure.
        note: A sentence that says what the numbers mean; below the title.
        value_name: What the numbers are.
        zero_centred: Whether zero is white; by default where there are negative values.

    Raises:
        FigureError: If words, rows and values do not fit together.
    """
    table = np.atleast_2d(array(values, axes="row token" if np.ndim(values) == 2 else "token"))
    shown = labels(words, table.shape[1], name="words")
    named = labels(rows if rows is not None else [""] * len(table), len(table), name="rows")
    centred = bool((table < 0).any()) if zero_centred is None else zero_centred
    strip = go.Heatmap(
        z=table,
        text=[shown] * len(table),
        texttemplate="%{text}",
        coloraxis="coloraxis",
        hoverongaps=False,
        hovertemplate="%{text}<br>%{z:.4g}<extra></extra>",
        xgap=2,
        ygap=2,
    )
    return finish(
        go.Figure(strip),
        title=title,
        note=note,
        coloraxis=colour_axis(limits(table), value_name, zero_centred=centred),
        xaxis={**ticks([""] * len(shown)), "visible": False},
        yaxis={**ticks(named, most=MOST_ROWS), "autorange": "reversed", "automargin": True},
        plot_bgcolor=ABSENT,
        height=130 + 34 * len(table),
    )


@dataclass(frozen=True)
class TokenPatterns:
    """Patterns between tokens, drawn by CircuitsVis; shows itself in notebooks.

    Attributes:
        html: What is drawn, with its program: nothing is fetched.
    """

    html: str

    def _repr_html_(self) -> str:
        """In a frame of its own, so that its program meets no other."""
        page = html.escape(self.html, quote=True)
        return f'<iframe srcdoc="{page}" style="border:0;width:100%;height:640px"></iframe>'

    @public
    def write(self, path: str | Path) -> Path:
        """Write a page."""
        written = Path(path).with_suffix(".html")
        written.parent.mkdir(parents=True, exist_ok=True)
        written.write_text(
            f'<!doctype html><meta charset="utf-8"><title>Patterns</title>{self.html}',
            encoding="utf-8",
        )
        return written

    def __repr__(self) -> str:
        """Its size; the program alone has a million characters."""
        return f"TokenPatterns({len(self.html)} characters)"


@public
def token_patterns(
    tokens: Sequence[str], patterns: Any, *, heads: Sequence[Any] | None = None
) -> TokenPatterns:
    """Attention between tokens, a small map for each head; the chosen one is shown large.

    Args:
        tokens: The tokens, which ask and are asked.
        patterns: Numbers with axes head, query, key, or query, key.
        heads: Names of the heads; by default counted from 0.

    Raises:
        FigureError: If tokens, heads and patterns do not fit together, or there are more than
            400,000 values, which make browsers stall.

    Source: CircuitsVis `AttentionHeads`. Differs: nothing is masked, because diffusion models
    attend in both directions.
    """
    if np.ndim(patterns) == 2:
        values = array(patterns, axes="query key", name="patterns")[None]
    else:
        values = array(patterns, axes="head query key", name="patterns")
    count = len(tokens)
    if values.shape[1:] != (count, count):
        raise FigureError(
            f"patterns between {count} tokens must have {count} queries and {count} keys; "
            f"the shape is {values.shape}"
        )
    if values.size > MOST_PATTERN_VALUES:
        raise FigureError(
            f"{values.size:,} values are more than a browser draws well "
            f"({MOST_PATTERN_VALUES:,}); give fewer heads or tokens"
        )
    named = [f"head {number}" for number in range(len(values))] if heads is None else heads
    if len(named) != len(values):
        raise FigureError(f"heads has {len(named)} labels for {len(values)} patterns")
    return TokenPatterns(_page(tokens, np.nan_to_num(values), named))


def _page(tokens: Sequence[str], values: np.ndarray, heads: Sequence[Any]) -> str:
    """CircuitsVis with its program inside the page and every text of users as data."""
    import circuitsvis

    program = Path(circuitsvis.__file__).parent / "dist" / "cdn" / "iife.js"
    given = {
        "tokens": [str(token) for token in tokens],
        "attention": np.round(values, 5).tolist(),
        "attentionHeadNames": [str(head) for head in heads],
        "maskUpperTri": False,
    }
    data = json.dumps(given).replace("<", "\\u003c")
    inside = program.read_text(encoding="utf-8").replace("</script>", "<\\/script>")
    return (
        '<div id="patterns"></div><script type="module">'
        f'{inside}\nCircuitsVis.render("patterns", CircuitsVis.AttentionHeads, {data})</script>'
    )
