"""Grids, curves, bars and tokens: values, labels, absent values, and what does not fit."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import diffusion_lens.viz
from diffusion_lens.errors import FigureError

viz: Any = diffusion_lens.viz  # type checkers do not know the attributes of plotly's figures

MARKUP = "<b>&$"
DRAWN = "&lt;b&gt;&amp;&#36;"
NAN = float("nan")


def test_a_grid_shows_each_value_at_its_labels() -> None:
    values = torch.tensor([[1.0, 2.0, NAN], [4.0, 5.0, 6.0]])
    figure = viz.head_grid(values, rows=["circle", "square"], columns=[0, 1, 2])
    (heat,) = figure.data
    np.testing.assert_array_equal(np.asarray(heat.z, dtype=float), values.numpy())
    assert list(heat.customdata[1][2]) == ["square", "2"]
    assert list(figure.layout.yaxis.ticktext) == ["circle", "square"]
    assert figure.layout.yaxis.autorange == "reversed"
    assert heat.hoverongaps is False


def test_a_note_stands_below_the_title_on_lines_that_fit_a_telephone() -> None:
    note = "A sentence that says what the numbers mean, and that goes on for longer than a line."
    for title in ("effects", None):
        figure = viz.bars({"a": 1.0}, title=title, note=note)
        heading = figure.layout.title.text
        said = heading[heading.index("A sentence") :].removesuffix("</span>")
        assert said.replace("<br>", " ") == note and heading.startswith(title or "<span")
        assert max(map(len, said.split("<br>"))) <= 60
        assert figure.layout.margin.t > viz.bars({"a": 1.0}).layout.margin.t


def test_a_colour_scale_says_what_some_values_mean() -> None:
    marks = {0: "nothing", 1: "all"}
    figure = viz.head_grid([[-0.2, 0.9]], rows=["a"], columns=["b", "c"], marks=marks)
    scale = figure.layout.coloraxis
    assert (scale.cmin, scale.cmax) == (-1.0, 1.0)
    said = dict(zip(scale.colorbar.tickvals, scale.colorbar.ticktext, strict=True))
    assert said[0] == "0 nothing" and said[1] == "1 all" and said[-1] == "-1"
    small = viz.head_grid([[-0.2, 0.3]], rows=["a"], columns=["b", "c"], marks=marks)
    assert small.layout.coloraxis.cmax == pytest.approx(0.3)
    assert "0 nothing" in small.layout.coloraxis.colorbar.ticktext


def test_the_pointer_names_modules_and_cells() -> None:
    grid = {"rows": ["x"], "columns": ["8.0", "8.1"]}
    figure = viz.head_grid([[1.0, 2.0]], **grid, column_notes=["up.attn2", ""])
    assert [one[1] for one in figure.data[0].customdata[0]] == ["8.0 (up.attn2)", "8.1"]
    figure = viz.head_grid([[1.0, 2.0]], **grid, cells=[["head 8.0", "head 8.1"]])
    assert [one[0] for one in figure.data[0].customdata[0]] == ["head 8.0", "head 8.1"]
    assert "customdata[1]" not in figure.data[0].hovertemplate
    for more in (
        {"column_notes": [MARKUP, ""]},
        {"row_notes": [MARKUP]},
        {"cells": [[MARKUP, ""]]},
    ):
        figure = viz.head_grid([[1.0, 2.0]], **grid, **more)
        assert any(DRAWN in one for one in figure.data[0].customdata[0][0])
    with pytest.raises(FigureError, match="column_notes has 1 label for 2"):
        viz.head_grid([[1.0, 2.0]], **grid, column_notes=["up.attn2"])
    with pytest.raises(FigureError, match="cells has 1 label for 2"):
        viz.head_grid([[1.0, 2.0]], **grid, cells=[["head 8.0"]])


def test_equal_labels_keep_their_places() -> None:
    figure = viz.head_grid(torch.eye(2), rows=["a", "a"], columns=["1", "1"])
    assert list(figure.layout.xaxis.tickvals) == [0, 1]
    assert list(figure.layout.yaxis.ticktext) == ["a", "a"]


def test_a_table_of_nothing_but_absent_values_is_drawn() -> None:
    scale = viz.head_grid([[NAN]], rows=["a"], columns=["b"]).layout.coloraxis
    assert (scale.cmin, scale.cmax) == (0.0, 1.0)


def test_many_labels_are_thinned_on_the_axis_and_kept_for_the_pointer() -> None:
    figure = viz.head_grid(torch.rand(1, 128), rows=["all"], columns=range(128))
    assert len(figure.layout.xaxis.tickvals) <= 40
    assert figure.layout.xaxis.ticktext[1] == str(figure.layout.xaxis.tickvals[1])
    assert figure.data[0].customdata[0][127][1] == "127"


def test_negative_values_centre_the_scale_on_zero() -> None:
    figure = viz.head_grid([[-1.0, 3.0]], rows=["a"], columns=["b", "c"])
    scale = figure.layout.coloraxis
    assert (scale.cmin, scale.cmax) == (-3.0, 3.0)
    (low, blue), (high, red) = scale.colorscale[0], scale.colorscale[-1]
    assert (low, high) == (0.0, 1.0)
    assert (blue, red) == ("rgb(5,48,97)", "rgb(103,0,31)")
    scale = viz.head_grid([[1.0, 3.0]], rows=["a"], columns=["b", "c"]).layout.coloraxis
    assert (scale.cmin, scale.cmax) == (1.0, 3.0)
    assert scale.colorscale[0][1] == "#440154"
    asked = viz.head_grid([[-1.0, 3.0]], rows=["a"], columns=["b", "c"], zero_centred=False)
    assert asked.layout.coloraxis.cmin == -1.0


def test_curves_have_their_values_and_bands() -> None:
    figure = viz.curves(
        [0, 4, 8],
        {"most": [1.0, 0.5, 0.0], "least": torch.tensor([1.0, NAN, 0.9])},
        intervals={"most": ([0.9, 0.4, 0.0], [1.1, 0.6, 0.1])},
        x_title="heads",
        y_title="score",
    )
    low, high, most, least = figure.data
    assert high.fill == "tonexty"
    np.testing.assert_allclose(np.asarray(low.y, dtype=float), [0.9, 0.4, 0.0])
    np.testing.assert_allclose(np.asarray(high.y, dtype=float), [1.1, 0.6, 0.1])
    assert low.legendgroup == most.legendgroup != least.legendgroup
    assert (most.name, least.name) == ("most", "least")
    assert most.line.color != least.line.color
    assert most.line.dash != least.line.dash
    assert np.isnan(np.asarray(least.y, dtype=float)[1])
    assert figure.layout.xaxis.title.text == "heads"


def test_bars_have_their_values_and_whiskers() -> None:
    figure = viz.bars({"a": 1.0, "b": -2.0}, intervals={"b": (-2.5, -1.0)})
    (bar,) = figure.data
    np.testing.assert_allclose(np.asarray(bar.y, dtype=float), [1.0, -2.0])
    np.testing.assert_allclose(np.asarray(bar.error_y.array, dtype=float), [NAN, 1.0])
    np.testing.assert_allclose(np.asarray(bar.error_y.arrayminus, dtype=float), [NAN, 0.5])
    assert [said for _, said in np.asarray(bar.customdata)] == ["", " (-2.5 to -1)"]
    assert list(figure.layout.xaxis.ticktext) == ["a", "b"]
    assert viz.bars({"a": 1.0}).data[0].error_y.array is None


def test_tokens_are_coloured_by_their_values() -> None:
    figure = viz.tokens(["a", "<s>", "a"], [0.1, NAN, 0.9], value_name="mass")
    (strip,) = figure.data
    assert list(strip.text[0]) == ["a", "&lt;s&gt;", "a"]
    np.testing.assert_allclose(np.asarray(strip.z, dtype=float), [[0.1, NAN, 0.9]], atol=1e-6)
    rows = viz.tokens(["a", "b"], torch.rand(3, 2), rows=["x", "y", "z"])
    assert list(rows.layout.yaxis.ticktext) == ["x", "y", "z"]


def texts(node: Any) -> list[str]:
    """Every text of a figure's json."""
    if isinstance(node, dict):
        return [text for value in node.values() for text in texts(value)]
    if isinstance(node, list):
        return [text for value in node for text in texts(value)]
    return [node] if isinstance(node, str) else []


FIGURES: dict[str, Callable[[], Any]] = {
    "grid": lambda: viz.head_grid(
        [[1.0]],
        rows=[MARKUP],
        columns=[MARKUP],
        title=MARKUP,
        value_name=MARKUP,
        row_title=MARKUP,
        column_title=MARKUP,
        column_notes=[MARKUP],
        note=MARKUP,
        marks={1: MARKUP},
    ),
    "curves": lambda: viz.curves(
        [0], {MARKUP: [1.0]}, x_title=MARKUP, y_title=MARKUP, title=MARKUP, note=MARKUP
    ),
    "bars": lambda: viz.bars({MARKUP: 1.0}, x_title=MARKUP, title=MARKUP, note=MARKUP),
    "tokens": lambda: viz.tokens([MARKUP], [1.0], title=MARKUP, value_name=MARKUP, rows=[MARKUP]),
    "strip": lambda: viz.image_strip([np.ones((4, 4))], captions=[MARKUP], title=MARKUP),
    "frames": lambda: viz.frames([np.ones((4, 4))], captions=[MARKUP], title=MARKUP),
    "overlay": lambda: viz.overlays(
        np.ones((4, 4)),
        np.ones((1, 1, 2, 2)),
        titles=[MARKUP],
        steps=[MARKUP],
        title=MARKUP,
        note=MARKUP,
        value_name=MARKUP,
        step_name=MARKUP,
    ),
}


@pytest.mark.parametrize("figure", FIGURES.values(), ids=FIGURES.keys())
def test_texts_of_users_are_drawn_as_they_are_written(figure: Callable[[], Any]) -> None:
    found = texts(figure().to_plotly_json())
    assert not [text for text in found if "<b>" in text or "&$" in text]
    assert any(DRAWN in text for text in found)


def test_braces_in_a_name_are_no_part_of_the_pointer_template() -> None:
    figure = viz.head_grid([[1.0]], rows=["a"], columns=["b"], value_name="%{x}")
    assert "%{x}" not in figure.data[0].hovertemplate


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        pytest.param(
            lambda: viz.head_grid([[1.0]], rows=["a", "b"], columns=["c"]),
            "rows has 2 labels for 1 value",
            id="rows",
        ),
        pytest.param(
            lambda: viz.head_grid([1.0], rows=["a"], columns=["c"]),
            "the axes row column",
            id="axes",
        ),
        pytest.param(
            lambda: viz.curves([0, 1], {"a": [1.0]}),
            r"curves\['a'\] has 1 values for 2 places",
            id="length",
        ),
        pytest.param(
            lambda: viz.curves([0], {"most": [1.0]}, intervals={"mos": ([0.0], [1.0])}),
            "Closest: 'most'",
            id="interval",
        ),
        pytest.param(lambda: viz.bars({}), "none of them empty", id="no bars"),
        pytest.param(
            lambda: viz.bars({"a": 1.0}, intervals={"b": (0, 1)}),
            "an interval for 'b'",
            id="whisker",
        ),
        pytest.param(lambda: viz.tokens(["a"], [1.0, 2.0]), "words has 1 label for 2", id="words"),
    ],
)
def test_what_does_not_fit_is_refused(draw: Callable[[], Any], said: str) -> None:
    with pytest.raises(FigureError, match=said):
        draw()
