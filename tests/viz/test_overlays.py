"""Maps over images: panels, colours, slider, and what does not fit."""

import base64
import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import diffusion_lens.viz
from diffusion_lens.errors import FigureError

viz: Any = diffusion_lens.viz  # type checkers do not know the attributes of plotly's figures

IMAGE = Image.new("RGB", (64, 32), (10, 200, 30))


def test_a_map_is_stretched_over_its_image() -> None:
    figure = viz.overlays(IMAGE, torch.rand(2, 4, 8), alpha=0.3)
    assert len(figure.data) == len(figure.layout.images) == 1 + 2
    heat = figure.data[1]
    assert (heat.x0, heat.dx, heat.y0, heat.dy) == (4, 8, 4, 8)
    assert heat.opacity == 0.3
    assert heat.xaxis == "x3"
    assert list(figure.layout.xaxis3.range) == [0, 64]
    assert list(figure.layout.yaxis3.range) == [32, 0]
    assert figure.layout.images[2].xref == "x3"
    assert not figure.frames


def test_values_stand_where_they_were_measured() -> None:
    maps = torch.arange(12.0).reshape(1, 3, 4)
    figure = viz.overlays(IMAGE, maps)
    np.testing.assert_array_equal(np.asarray(figure.data[0].z, dtype=float), maps[0].numpy())


def test_panels_and_steps_share_one_colour_scale() -> None:
    maps = torch.zeros(2, 2, 2, 2)
    maps[0, 0], maps[1, 1] = -3.0, 5.0
    scale = viz.overlays(IMAGE, maps).layout.coloraxis
    assert (scale.cmin, scale.cmax) == (-3.0, 5.0)
    scale = viz.overlays(IMAGE, maps, zmin=0.0, zmax=1.0).layout.coloraxis
    assert (scale.cmin, scale.cmax) == (0.0, 1.0)


def test_the_slider_has_a_place_for_each_step_and_starts_in_the_middle() -> None:
    maps = torch.rand(3, 2, 4, 4)
    figure = viz.overlays(IMAGE, maps, steps=[0, 5, 9])
    (slider,) = figure.layout.sliders
    assert [step.label for step in slider.steps] == ["0", "5", "9"]
    assert [step.args[0][0] for step in slider.steps] == [frame.name for frame in figure.frames]
    assert slider.active == 1
    assert "Opens at step 5, the middle one." in figure.layout.title.text
    for frame, expected in zip(figure.frames, maps, strict=True):
        drawn = np.stack([np.asarray(one.z, dtype=float) for one in frame.data])
        np.testing.assert_allclose(drawn, expected.numpy())
        assert list(frame.traces) == [0, 1]
    np.testing.assert_allclose(np.asarray(figure.data[1].z, dtype=float), maps[1, 1].numpy())


def test_the_image_stands_plain_before_its_maps_which_lie_over_greys() -> None:
    figure = viz.overlays(IMAGE, torch.rand(2, 4, 4), titles=["a", "b"])
    assert [note.text for note in figure.layout.annotations] == ["image", "a", "b"]
    first, second, third = (pixel(one.source) for one in figure.layout.images)
    assert first == (10, 200, 30)
    assert second == third and len(set(second)) == 1 and second[0] >= 150
    assert len(viz.overlays(IMAGE, torch.rand(2, 4, 4), plain=False).layout.images) == 2


def test_several_images_each_stand_before_their_own_maps_and_begin_a_row() -> None:
    one, other = Image.new("RGB", (8, 8), (90, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 90))
    images = [one, one.copy(), one.copy(), other, other, other]
    figure = viz.overlays(images, torch.rand(6, 2, 2), titles=list("abcdef"))
    shown = [note.text for note in figure.layout.annotations]
    assert shown == ["image", "a", "b", "c", "image", "d", "e", "f"]
    assert [len(row) for row in figure._grid_ref] == [4, 4]
    assert pixel(figure.layout.images[4].source) == (0, 0, 90)
    assert [heat.xaxis for heat in figure.data[:6]] == ["x2", "x3", "x4", "x6", "x7", "x8"]


def test_low_values_let_the_image_be_seen() -> None:
    scale = viz.overlays(IMAGE, torch.rand(1, 2, 2)).layout.coloraxis.colorscale
    clear = [float(colour.rstrip(")").rsplit(",", 1)[1]) for _, colour in scale]
    assert clear[0] == 0 and clear[-1] == 1 and clear == sorted(clear)


def pixel(address: str) -> tuple[int, ...]:
    """The first pixel of an image inside a figure."""
    data = base64.b64decode(address.partition(",")[2])
    found: Any = Image.open(io.BytesIO(data)).convert("RGB").getpixel((0, 0))
    return found


def test_one_step_still_has_a_slider() -> None:
    assert len(viz.overlays(IMAGE, torch.rand(1, 2, 4, 4)).layout.sliders[0].steps) == 1


def test_an_absent_value_leaves_the_image_to_be_seen() -> None:
    maps = torch.ones(1, 2, 2)
    maps[0, 0, 0] = float("nan")
    figure = viz.overlays(IMAGE, maps)
    assert np.isnan(np.asarray(figure.data[0].z, dtype=float)[0, 0])
    assert figure.data[0].hoverongaps is False
    assert figure.layout.coloraxis.cmin == 1.0


def test_maps_of_nothing_but_absent_values_are_drawn() -> None:
    assert viz.overlays(IMAGE, torch.full((1, 2, 2), float("nan"))).layout.coloraxis.cmax == 1.0


def test_an_image_for_each_panel() -> None:
    other = Image.new("RGB", (64, 32))
    figure = viz.overlays([IMAGE, other], torch.rand(2, 4, 4), plain=False)
    first, second = figure.layout.images
    assert first.source != second.source


def test_an_image_for_each_step_moves_with_the_slider() -> None:
    images = [Image.new("RGB", (8, 8), (60 * n, 0, 0)) for n in range(3)]
    figure = viz.overlays(images, torch.rand(3, 2, 4, 4))
    backdrops = [frame.layout.images for frame in figure.frames]
    assert len({row[0].source for row in backdrops}) == 3
    assert len({row[1].source for row in backdrops}) == 3
    assert all(row[1].source == row[2].source != row[0].source for row in backdrops)


def test_as_many_images_as_steps_and_panels_must_be_told_apart() -> None:
    images = [Image.new("RGB", (8, 8), (60 * n, 0, 0)) for n in range(3)]
    maps = torch.rand(3, 3, 4, 4)
    with pytest.raises(FigureError, match="images_over='panel' or images_over='step'"):
        viz.overlays(images, maps)
    by_step = viz.overlays(images, maps, images_over="step")
    assert by_step.layout.images[1].source == by_step.layout.images[2].source
    by_panel = viz.overlays(images, maps, images_over="panel")
    assert by_panel.layout.images[1].source != by_panel.layout.images[3].source


def test_titles_are_drawn_as_they_are_written() -> None:
    figure = viz.overlays(IMAGE, torch.rand(1, 2, 2), titles=["<b>a</b> & $x$"])
    _, annotation = figure.layout.annotations
    assert annotation.text == "&lt;b&gt;a&lt;/b&gt; &amp; &#36;x&#36;"


def test_titles_are_broken_where_panels_are_narrow() -> None:
    titles = ["a red circle & a square", "b", "c", "d"]
    figure = viz.overlays(IMAGE, torch.rand(4, 2, 2), titles=titles)
    assert figure.layout.annotations[1].text == "a red circle<br>&amp; a square"
    short = viz.overlays(IMAGE, torch.rand(4, 2, 2), titles=list("abcd"))
    assert figure.layout.height > short.layout.height


def test_bilinear_smooths_and_nearest_does_not() -> None:
    assert viz.overlays(IMAGE, torch.rand(1, 2, 2)).data[0].zsmooth is False
    assert viz.overlays(IMAGE, torch.rand(1, 2, 2), upsample="bilinear").data[0].zsmooth == "best"


def test_gradients_half_precision_and_lists_are_accepted() -> None:
    viz.overlays(IMAGE, torch.rand(1, 2, 2, requires_grad=True))
    viz.overlays(IMAGE, torch.rand(1, 2, 2, dtype=torch.bfloat16))
    viz.overlays(IMAGE, [[[0.0, 1.0]]])
    viz.overlays(np.asarray(IMAGE), [[[[0.0, 1.0]]]])


@pytest.mark.parametrize(
    ("images", "maps", "settings", "said"),
    [
        pytest.param(IMAGE, torch.rand(2, 2), {}, "the axes panel height width", id="no panels"),
        pytest.param(IMAGE, torch.rand(0, 2, 2), {}, "none of them empty", id="nothing"),
        pytest.param([IMAGE] * 2, torch.rand(3, 2, 2), {}, "2 images for 3 panels", id="images"),
        pytest.param(
            IMAGE, torch.rand(3, 2, 2), {"titles": ["a"]}, "titles has 1 label for 3", id="titles"
        ),
        pytest.param(
            IMAGE, torch.rand(3, 2, 2), {"steps": [1]}, "needs maps with axes step", id="no steps"
        ),
        pytest.param(
            IMAGE, torch.rand(2, 1, 2, 2), {"steps": [1]}, "steps has 1 label for 2", id="steps"
        ),
        pytest.param(
            IMAGE, torch.rand(1, 2, 2), {"upsample": "linear"}, "Closest: 'bilinear'", id="upsample"
        ),
        pytest.param(
            IMAGE, torch.rand(1, 2, 2), {"images_over": "frame"}, "neither 'panel'", id="over"
        ),
        pytest.param(IMAGE, [["a"]], {}, "must be numbers", id="no numbers"),
        pytest.param([], torch.rand(1, 2, 2), {}, "no image is given", id="no image"),
        pytest.param("a.png", torch.rand(1, 2, 2), {}, "an image is a PIL image", id="a path"),
        pytest.param(
            np.full((2, 2, 3), 2.0), torch.rand(1, 2, 2), {}, "must lie in", id="bright image"
        ),
        pytest.param(
            np.ones((3, 2, 2)), torch.rand(1, 2, 2), {}, "height, width, 3", id="channels"
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    images: Any, maps: Any, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(FigureError, match=said):
        viz.overlays(images, maps, **settings)
