"""What the figures of results say: a sentence, units, names of heads."""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from diffusion_lens.analyses.head_patterns.result import HeadPatterns
from diffusion_lens.analyses.head_relevance import HeadRelevance
from diffusion_lens.analyses.patching import PatchingResult
from tests.showing.test_one_line import RESULTS


def heading(figure: Any) -> str:
    """Title and sentence on one line."""
    return figure.layout.title.text.replace("<br>", " ")


@pytest.mark.parametrize("result", RESULTS.values(), ids=[one.__name__ for one in RESULTS])
def test_every_figure_says_in_a_sentence_what_its_numbers_mean(result: Callable[[], Any]) -> None:
    said = heading(result().plot())
    sentence = said[said.index("<span") :].partition(">")[2].removesuffix("</span>")
    assert len(sentence) > 30 and sentence.rstrip().endswith(".")


def patched(axes: tuple[str, ...], **made_by: Any) -> Any:
    labels = {"block": (7, 8), "head": (0, 1), "step": (0, 1, 2)}
    shape = [len(labels[axis]) for axis in axes]
    grid = torch.linspace(-0.2, 0.97, int(np.prod(shape))).reshape(shape)
    return PatchingResult(
        effects=grid,
        low=grid,
        high=grid,
        samples=grid[..., None],
        axes=axes,
        labels={axis: labels[axis] for axis in axes},
        seeds=(0, 1),
        source=grid,
        base=grid,
        left_out={},
        made_by=made_by,
    )


RUNS = {"clean": {"prompt": "a green circle"}, "corrupted": {"prompt": "a red circle"}}


def test_a_patching_grid_says_what_0_and_1_are() -> None:
    figure = patched(("block", "step"), **RUNS, direction="denoise").plot()
    assert "source “a green circle” into the base “a red circle”" in heading(figure)
    assert "0, it stays as it is; 1, it becomes as the source. Mean over 2 samples." in heading(
        figure
    )
    assert figure.layout.xaxis.title.text == "step" and figure.layout.yaxis.title.text == "block"
    assert list(figure.layout.xaxis.ticktext) == ["0", "1", "2"]
    assert list(figure.layout.yaxis.ticktext) == ["7", "8"]
    bar = figure.layout.coloraxis.colorbar
    assert bar.title.text == "effect (share of the way)"
    assert {"0 as the base", "1 as the source"} <= set(bar.ticktext)
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (-1, 1)


def test_with_noise_the_clean_run_is_the_base() -> None:
    said = heading(patched(("block",), **RUNS, direction="noise").plot())
    assert "source “a red circle” into the base “a green circle”" in said
    assert "source into the base:" in heading(patched(("block",)).plot())


def test_a_head_has_one_name_in_every_patching_grid() -> None:
    figure = patched(("block", "head")).plot()
    assert figure.data[0].customdata[1][0][0] == "head 8.0"
    figure = patched(("block", "head", "step")).plot()
    assert list(figure.layout.yaxis.ticktext) == ["7.0", "7.1", "8.0", "8.1"]
    assert figure.layout.yaxis.title.text == "head (block.head)"
    modules = {8: "up.8.attn2"}
    figure = patched(("block", "head"), modules=modules).plot()
    assert [row[0][0] for row in figure.data[0].customdata] == ["head 7.0", "head 8.0 (up.8.attn2)"]
    figure = patched(("block", "step"), modules=modules).plot()
    assert [row[0][0] for row in figure.data[0].customdata] == ["7", "8 (up.8.attn2)"]
    assert list(figure.layout.yaxis.ticktext) == ["7", "8"]
    figure = patched(("step", "block"), modules=modules).plot()
    assert [one[1] for one in figure.data[0].customdata[0]] == ["7", "8 (up.8.attn2)"]
    bars = patched(("block",)).plot()
    assert bars.layout.xaxis.title.text == "block" and "effect" in bars.layout.yaxis.title.text


def test_a_head_has_one_name_and_its_module_at_the_pointer() -> None:
    heads = tuple(product((7, 8), (0, 1)))
    relevance: Any = HeadRelevance(
        vectors=torch.rand(1, 4),
        concepts=("Colour",),
        words={"Colour": ("red",)},
        heads=tuple((*pair, f"up.{pair[0]}.attn2", "up, layer 1") for pair in heads),
    )
    figure = relevance.plot()
    assert list(figure.layout.xaxis.ticktext) == ["7.0", "7.1", "8.0", "8.1"]
    assert figure.data[0].customdata[0][2][1] == "8.0 (up.8.attn2)"
    assert relevance.plot("Colour").data[0].customdata[1][0][0] == "head 8.0 (up.8.attn2)"
    patterns: Any = HeadPatterns(
        mass=None,
        values={"entropy": torch.rand(1, 3, 4)},
        heads=heads,
        steps=(0, 1, 2),
        positions=(),
        prompts=(),
        made_by={"modules": {7: "up.7.attn2", 8: "up.8.attn2"}},
    )
    figure = patterns.plot()
    assert list(figure.layout.xaxis.ticktext) == ["7.0", "7.1", "8.0", "8.1"]
    assert figure.data[0].customdata[0][2][1] == "8.0 (up.8.attn2)"
    assert figure.layout.coloraxis.colorbar.title.text == "nats"
